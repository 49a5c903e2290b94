"""The demo: train a character model on the help texts that come with Python, and evaluate it.

    run = train_demo(DemoSettings(demo_directory(), minutes=5))
    report = evaluate_demo(run)

It creates a run directory as any training does, and adds a picture of the curves and the figures
of the report (demo.json). `sedd-fast demo` prints the report.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from sedd_fast.data.blocks import BlockOrder
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.prompts import Piece, Sample, decode_samples, lay_out
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus
from sedd_fast.evaluate.ngram import baseline_bits
from sedd_fast.extras import MissingLibraryError
from sedd_fast.files.writing import write_text
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling.api import infill, sample
from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.config import load_config
from sedd_fast.training.plots import plot_training
from sedd_fast.training.progress import OnStep, TrainResult
from sedd_fast.training.run_directory import RunDirectory

RECORD, PICTURE = "demo.json", "curves.png"
SAMPLES = 3
#: The prompt of the infill: its start, its middle and its end.
GIVEN = ("The ", " statement ", " is raised.\n")
#: Sampling steps, and noise levels per held-out block; a demo under 2 minutes takes fewer.
_STEPS, _LEVELS, _FULL_MINUTES = 256, 32, 2.0

OnStage = Callable[[str], object]


@dataclass(frozen=True)
class DemoSettings:
    """The settings of a demo.

    Args:
        run_dir: from `demo_directory`.
        minutes: training time.
        seed: random seed for weights, training, bound and samples.
    """

    run_dir: Path
    minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise ValueError(f"minutes: expected a positive number, got {self.minutes}; usual is 5")


@dataclass(frozen=True)
class DemoReport:
    """The results of a demo.

    Attributes:
        bound: likelihood bound of the held-out text, by block.
        chars_per_token: characters per token of the held-out text (end-of-text is a token).
        baselines: name of an n-gram model -> its bits per character of the same held-out text.
        samples: unconditional samples.
        filled: an infill around the prompt GIVEN.
    """

    bound: LikelihoodBound
    chars_per_token: float
    baselines: dict[str, float]
    samples: list[Sample]
    filled: Sample

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
        """Bits per character by which the model is better than the unigram model."""
        return self.baselines["unigram"] - self.bits


def demo_directory(run_dir: Path | None = None) -> Path:
    """The directory of the demo: one that is free, or holds an interrupted demo.

    Args:
        run_dir: the directory to use; None: the first usable one of runs/demo, runs/demo-2, ...

    Raises:
        ValueError: `run_dir` holds another run.
    """
    if run_dir is None:
        names = chain(["demo"], (f"demo-{number}" for number in count(2)))
        return next(path for name in names if is_usable(path := Path("runs") / name))
    if not is_usable(run_dir):
        raise ValueError(
            f"run_dir: {run_dir} already holds a finished run; choose another directory, "
            f"or look at this one: sedd-fast sample --model {run_dir}"
        )
    return run_dir


def is_usable(path: Path) -> bool:
    """Whether a demo can be trained in the directory: it holds no other run."""
    return is_interrupted(path) or not RunDirectory(path).config.exists()


def is_interrupted(path: Path) -> bool:
    """Whether the directory holds a demo that was started and is not finished."""
    return _finished(path) is False


def is_trained(path: Path) -> bool:
    """Whether the directory holds a demo whose training is finished."""
    finished = _finished(path)
    return finished is not None and (finished or is_finished(path))


def train_demo(settings: DemoSettings, on_step: OnStep | None = None) -> TrainResult:
    """Train the preset `tiny` in `run_dir`, or resume the demo that was interrupted there."""
    path = settings.run_dir
    limit = f"training.max_minutes={settings.minutes!r}"
    if is_interrupted(path) and RunDirectory(path).config.is_file():
        return resume(path, [limit], on_step)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / RECORD, {"finished": False})
    overrides = [limit, f"training.seed={settings.seed}"]
    if settings.minutes < 1:
        overrides.append("training.log_freq=1")  # a curve needs points, and the steps are few
    config = load_config("tiny", overrides=overrides)
    return train(replace(config, run_dir=str(path)), on_step)


def evaluate_demo(run: TrainResult, on_stage: OnStage = lambda stage: None) -> DemoReport:
    """Bound, baselines, samples, infill and picture of a finished demo.

    Args:
        run: the result of `train_demo`.
        on_stage: called with the name of each stage when it begins.
    """
    directory = RunDirectory(run.run_dir)
    config = load_config(files=[directory.config])
    effort = min(1.0, (config.training.max_minutes or _FULL_MINUTES) / _FULL_MINUTES)
    steps, levels = max(16, round(_STEPS * effort)), max(2, round(_LEVELS * effort))
    model, tokenizer = SEDD.from_pretrained(run.export), load_tokenizer(run.export)
    process, length, seed = (model.graph, model.noise), config.model.length, config.training.seed

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    corpus = load_corpus(config.data, length, seed, tokenizer)
    assert isinstance(corpus.train, BlockOrder)
    assert corpus.held_out is not None
    assert corpus.chars_per_token is not None
    blocks = corpus.held_out.rows(range(len(corpus.held_out)))  # (N, L)
    on_stage("bounding the held-out text")
    bound = evaluate_corpus(model, blocks, *process, levels, generator=generator())
    on_stage("counting n-grams")
    counted = corpus.train.blocks.tokens
    per_token = baseline_bits(counted, blocks.flatten().numpy(), tokenizer.vocab_size)
    baselines = {name: bits / corpus.chars_per_token for name, bits in per_token.items()}
    on_stage("drawing samples")
    drawn = sample(model, *process, (SAMPLES, length), steps, generator=generator())
    samples = decode_samples(
        drawn, torch.zeros(length, dtype=torch.bool), tokenizer, model.graph.mask_index
    )
    on_stage("filling gaps")
    start, middle, end = GIVEN
    pieces = [Piece(start, 0), Piece(middle, (length - len(middle)) // 2), Piece(end, None)]
    tokens, known = lay_out(pieces, tokenizer, length)
    filled = infill(model, *process, tokens[None], known[None], steps, generator=generator())
    [filled_text] = decode_samples(filled, known, tokenizer, model.graph.mask_index)
    try:
        plot_training(directory.metrics, run.run_dir / PICTURE, baselines)
    except MissingLibraryError as error:
        on_stage(f"no picture: {error}")
    report = DemoReport(bound, corpus.chars_per_token, baselines, samples, filled_text)
    _write(run.run_dir / RECORD, _record(report, run))
    return report


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
        "picture": str(run.run_dir / PICTURE),
    }


def _finished(path: Path) -> bool | None:
    """What the record in the directory says; None where it holds no demo, or no such record."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    finished = record.get("finished") if isinstance(record, dict) else None
    return finished if isinstance(finished, bool) else None


def _write(path: Path, record: dict[str, Any]) -> None:
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
