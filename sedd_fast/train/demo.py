"""The demo's work: train a character model on text that every Python carries, and look at it.

    run = train_demo(DemoSettings(minutes=5))
    report = evaluate_demo(run)

It makes a run directory as any training does, and puts into it a picture of the curves and the
figures of the report (demo.json). `sedd-fast demo` shows it all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.data.blocks import BlockOrder
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.prompts import Piece, Sample, decode_samples, lay_out
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus
from sedd_fast.evaluate.ngram import baseline_bits
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling.api import infill, sample
from sedd_fast.train.api import is_finished, resume, train
from sedd_fast.train.config import load_config
from sedd_fast.train.plots import plot_training
from sedd_fast.train.progress import OnStep, TrainResult
from sedd_fast.train.run_directory import RunDirectory

RECORD, PICTURE = "demo.json", "curves.png"
SAMPLES = 3
#: What the infill is given: its start, its middle, its end.
GIVEN = ("The ", " statement ", " is raised.\n")
#: Sampling steps and noise levels for each held-out block; a demo under 2 minutes takes fewer.
_STEPS, _LEVELS, _FULL_MINUTES = 256, 32, 2.0

OnStage = Callable[[str], object]


@dataclass(frozen=True)
class DemoSettings:
    """What may be chosen.

    Args:
        minutes: of training.
        run_dir: a new directory, or one of a demo that was interrupted; None: runs/demo, or
            runs/demo-2, ... where that is taken.
        seed: of everything.
    """

    minutes: float = 5.0
    run_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise ValueError(f"minutes: expected a positive number, got {self.minutes}; usual is 5")


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes:
        bound: on the held-out text, block by block.
        chars_per_token: of the held-out text (its end-of-text is a token).
        baselines: name -> bits per character of the same held-out text.
        samples: drawn from nothing.
        filled: drawn around GIVEN.
        picture: the curves.
    """

    bound: LikelihoodBound
    chars_per_token: float
    baselines: dict[str, float]
    samples: list[Sample]
    filled: Sample
    picture: Path

    @property
    def bits(self) -> float:
        """The bound in bits per character."""
        return self.bound.bits_per_token / self.chars_per_token

    @property
    def stderr(self) -> float:
        """Standard error of `bits`."""
        return self.bound.bits_per_token_stderr / self.chars_per_token

    @property
    def gain(self) -> float:
        """Bits per character by which the model beats the unigram."""
        return self.baselines["unigram"] - self.bits


def demo_directory(settings: DemoSettings) -> Path:
    """Where the demo runs: a directory that is free, or holds a demo that was interrupted.

    Raises:
        ValueError: the directory asked for holds something else.
    """
    if settings.run_dir is None:
        return next(path for path in _default_directories() if _usable(path))
    if not _usable(settings.run_dir):
        raise ValueError(
            f"run_dir: {settings.run_dir} already holds a finished run; choose another directory, "
            f"or look at this one: sedd-fast sample --model {settings.run_dir}"
        )
    return settings.run_dir


def is_interrupted(path: Path) -> bool:
    """Whether a demo was begun there and is not finished."""
    record = _read(path / RECORD)
    return record is not None and not record["finished"]


def is_trained(path: Path) -> bool:
    """Whether the demo's training there has come to its end."""
    record = _read(path / RECORD)
    return record is not None and (record["finished"] or is_finished(path))


def train_demo(settings: DemoSettings, path: Path, on_step: OnStep | None = None) -> TrainResult:
    """Train the preset `tiny` in `path`, or go on with a demo that was interrupted there."""
    limit = f"training.max_minutes={settings.minutes!r}"
    if is_interrupted(path) and RunDirectory(path).config.is_file():
        return resume(path, [limit], on_step)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / RECORD, {"finished": False})
    overrides = [
        limit,
        f"training.seed={settings.seed}",
        f"run_dir={json.dumps(str(path))}",  # quoted, as YAML quotes: it may look like a number
    ]
    if settings.minutes < 1:
        overrides.append("training.log_freq=1")  # a curve needs points, and the steps are few
    return train(load_config("tiny", (), overrides), on_step)


def evaluate_demo(run: TrainResult, on_stage: OnStage = lambda stage: None) -> DemoReport:
    """Bound, baselines, samples, infill and picture of a finished demo.

    Args:
        run: what `train_demo` returned.
        on_stage: told what is done next.
    """
    config = load_config(files=[RunDirectory(run.run_dir).config])
    minutes, seed = config.training.max_minutes or _FULL_MINUTES, config.training.seed
    effort = min(1.0, minutes / _FULL_MINUTES)
    steps, levels = max(16, round(_STEPS * effort)), max(2, round(_LEVELS * effort))
    network, length = _Network(run.export, seed, steps), config.model.length
    corpus = load_corpus(config.data, length, seed, network.tokenizer)
    assert isinstance(corpus.train, BlockOrder)
    assert corpus.held_out is not None
    assert corpus.chars_per_token is not None
    blocks = corpus.held_out.rows(range(len(corpus.held_out)))  # (N, L)
    on_stage("bounding the held-out text")
    bound = network.bound(blocks, levels)
    on_stage("counting n-grams")
    vocab_size, counted = network.tokenizer.vocab_size, corpus.train.blocks.tokens
    per_token = baseline_bits(counted, blocks.flatten().numpy(), vocab_size)
    baselines = {name: bits / corpus.chars_per_token for name, bits in per_token.items()}
    on_stage("drawing samples")
    samples = network.draw(length)
    on_stage("filling gaps")
    filled = network.fill(length)
    picture = plot_training(RunDirectory(run.run_dir).metrics, run.run_dir / PICTURE, baselines)
    report = DemoReport(bound, corpus.chars_per_token, baselines, samples, filled, picture)
    _write(run.run_dir / RECORD, _record(report, run))
    return report


class _Network:
    """The trained network, and what it is asked for."""

    def __init__(self, directory: Path, seed: int, steps: int) -> None:
        self.model, self.tokenizer = SEDD.from_pretrained(directory), load_tokenizer(directory)
        self.seed, self.steps = seed, steps

    def bound(self, blocks: Tensor, samples: int) -> LikelihoodBound:
        generator = torch.Generator().manual_seed(self.seed)
        m = self.model
        return evaluate_corpus(m, blocks, m.graph, m.noise, samples, generator=generator)

    def draw(self, length: int) -> list[Sample]:
        generator, m = torch.Generator().manual_seed(self.seed), self.model
        tokens = sample(m, m.graph, m.noise, (SAMPLES, length), self.steps, generator=generator)
        nothing = torch.zeros(length, dtype=torch.bool)
        return decode_samples(tokens, nothing, self.tokenizer, m.graph.mask_index)

    def fill(self, length: int) -> Sample:
        generator, m = torch.Generator().manual_seed(self.seed), self.model
        start, middle, end = GIVEN
        pieces = [Piece(start, 0), Piece(middle, (length - len(middle)) // 2), Piece(end, None)]
        tokens, known = lay_out(pieces, self.tokenizer, length)
        filled = infill(
            m, m.graph, m.noise, tokens[None], known[None], self.steps, generator=generator
        )
        return decode_samples(filled, known, self.tokenizer, m.graph.mask_index)[0]


def _default_directories() -> Iterator[Path]:
    yield Path("runs/demo")
    yield from (Path(f"runs/demo-{number}") for number in count(2))


def _usable(path: Path) -> bool:
    return is_interrupted(path) or not RunDirectory(path).config.exists()


def _record(report: DemoReport, run: TrainResult) -> dict[str, Any]:
    return {
        "finished": True,
        "step": run.step,
        "bits_per_char": report.bits,
        "stderr": report.stderr,
        "estimator": report.bound.description,
        "tokens": report.bound.total_tokens,
        "baselines": report.baselines,
        "below_unigram": report.gain,
        "samples": [drawn.text for drawn in report.samples],
        "filled": report.filled.text,
        "picture": str(report.picture),
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
