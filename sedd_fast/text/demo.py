"""The demo: train a model on the help texts that come with Python, and evaluate it.

    run = train_demo(DemoSettings(demo_directory(), minutes=5))
    train_demo_baseline(run)
    report = evaluate_demo(run)

It creates run directories as any training does, and adds a picture of the curves and the figures
of the report (demo.json). `sedd-fast demo` prints the report.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from sedd_fast.data.blocks import BlockOrder, Blocks
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.prompts import Sample
from sedd_fast.evaluate.ngram import baseline_bits
from sedd_fast.evaluate.words import known_words
from sedd_fast.evaluate.wrapping import Wrapped
from sedd_fast.extras import MissingLibraryError
from sedd_fast.files.paths import expanded
from sedd_fast.files.writing import write_text
from sedd_fast.sampling import SamplerConfig
from sedd_fast.text.bound import TextBound, bound_text
from sedd_fast.text.drawing import draw
from sedd_fast.text.network import Baseline, Network, load_any, load_network
from sedd_fast.text.requests import Request, from_record
from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.config import baseline_config, load_config, load_run_config
from sedd_fast.training.lock import is_locked
from sedd_fast.training.plots import plot_training
from sedd_fast.training.progress import OnStep, TrainResult
from sedd_fast.training.run_directory import RunDirectory

RECORD, PICTURE, BASELINE = "demo.json", "curves.png", "ar"
#: The text of the infill: 64 tokens or so with given start, middle and end.
TEMPLATE = "The [6] statement [24] exception [20] is raised.\n"
SAMPLES = 3  # shown
_WORD_SAMPLES = 16  # whose words are counted
#: Sampling steps, and noise levels per held-out block; a demo under 2 minutes takes fewer.
_STEPS, _LEVELS, _FULL_MINUTES = 256, 32, 2.0
#: Training time of the autoregressive baseline over that of the model.
_BASELINE_SHARE = 0.2
#: Names in the report.
MODEL, AUTOREGRESSIVE = "SEDD, this model", "autoregressive"

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
        held_out: where the held-out text is from.
        baselines: name of a model -> its bits per character of the same held-out text: n-grams, and
            the autoregressive network.
        known_words: fraction of the words that occur in the training text, by where they are from:
            the held-out text, samples of this model, samples of the autoregressive one.
        samples: unconditional samples.
        filled: an infill of TEMPLATE.
    """

    bound: TextBound
    held_out: str
    baselines: dict[str, float]
    known_words: dict[str, float]
    samples: list[Sample]
    filled: Sample

    @property
    def bits(self) -> float:
        """The bound in bits per character."""
        return self.bound.bits_per_char

    @property
    def stderr(self) -> float:
        """Standard error of `bits`."""
        return self.bound.bits_per_char_stderr

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
        paths = (Path("runs") / name for name in names)
        return next(path for path in paths if is_usable(path) and not is_locked(path))
    run_dir = expanded(run_dir)
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
        return resume(path, [limit], on_step, progress=False)
    path.mkdir(parents=True, exist_ok=True)
    _write(path / RECORD, {"finished": False})
    overrides = [limit, f"training.seed={settings.seed}"]
    if settings.minutes < 1:
        overrides.append("training.log_freq=1")  # a curve needs points, and the steps are few
    config = load_config("tiny", overrides=overrides)
    return train(replace(config, run_dir=str(path)), on_step, progress=False)


def train_demo_baseline(run: TrainResult, on_step: OnStep | None = None) -> None:
    """Train the autoregressive baseline of a demo for a fifth of its time, in RUN/ar.

    One that was trained as long is used as it is; any other is trained to that time.
    """
    config = load_run_config(RunDirectory(run.run_dir).config)
    minutes = _BASELINE_SHARE * (config.training.max_minutes or 0)
    path = run.run_dir / BASELINE
    if RunDirectory(path).config.is_file():
        resume(path, {"training.max_minutes": minutes}, on_step, progress=False)
        return
    config = baseline_config(config, path)
    config = replace(config, training=replace(config.training, max_minutes=minutes))
    train(config, on_step, progress=False)


def evaluate_demo(
    run: TrainResult, progress: bool = False, on_stage: OnStage = lambda stage: None
) -> DemoReport:
    """Bounds, n-grams, samples, infill and picture of a finished demo.

    Args:
        run: the result of `train_demo`, with the network of `train_demo_baseline` in it.
        progress: show the progress of each stage on stderr.
        on_stage: called with the name of each stage when it begins.
    """
    config = load_run_config(RunDirectory(run.run_dir).config)
    effort = min(1.0, (config.training.max_minutes or _FULL_MINUTES) / _FULL_MINUTES)
    steps, levels = max(16, round(_STEPS * effort)), max(2, round(_LEVELS * effort))
    length, seed = config.model.length, config.training.seed
    network = load_network(str(run.run_dir), None, "auto", "float32")
    rival = load_any(str(run.run_dir / BASELINE), None, "auto", "float32")
    tokenizer = network.tokenizer
    corpus = load_corpus(config.data, length, seed, tokenizer)
    assert isinstance(corpus.train, BlockOrder)
    assert isinstance(corpus.held_out, Blocks)
    assert corpus.chars_per_token is not None
    text = Wrapped.of_blocks(corpus.held_out, corpus.chars_per_token, corpus.held_out_source)
    on_stage("bounding the held-out text")
    bound = bound_text(network, text, samples=levels, seed=seed, progress=progress)
    exact = bound_text(rival, text, progress=progress)
    on_stage("counting n-grams")
    counted, held_out = corpus.train.blocks.tokens, corpus.held_out.tokens
    per_token = baseline_bits(counted, held_out, tokenizer.vocab_size)
    baselines = {name: bits / corpus.chars_per_token for name, bits in per_token.items()}
    baselines[AUTOREGRESSIVE] = exact.bits_per_char

    def drawn(of: Network | Baseline, request: Request, number: int) -> list[Sample]:
        sampler = SamplerConfig(steps=steps) if of is network else SamplerConfig()
        found = draw([request], of, sampler, number, seed, progress=progress)
        return [sample for _, sample in found]

    on_stage("drawing samples")
    number = max(SAMPLES, round(_WORD_SAMPLES * effort))
    samples = drawn(network, Request([], length), number)
    of_rival = drawn(rival, Request([], length), number)
    on_stage("filling gaps")
    [filled] = drawn(network, from_record({"template": TEMPLATE}, tokenizer, length), 1)
    known = tokenizer.decode(counted.tolist())
    shares = {
        "held-out text": [tokenizer.decode(held_out.tolist())],
        MODEL: [sample.text for sample in samples],
        AUTOREGRESSIVE: [sample.text for sample in of_rival],
    }
    words = {name: known_words(texts, [known]) for name, texts in shares.items()}
    try:
        metrics = RunDirectory(run.run_dir).metrics
        plot_training(metrics, run.run_dir / PICTURE, baselines, text.name)
    except MissingLibraryError as error:
        on_stage(f"no picture: {error}")
    report = DemoReport(bound, text.name, baselines, words, samples[:SAMPLES], filled)
    _write(run.run_dir / RECORD, _record(report, run))
    return report


def _record(report: DemoReport, run: TrainResult) -> dict[str, Any]:
    return {
        "finished": True,
        "step": run.step,
        "bits_per_char": report.bits,
        "stderr": report.stderr,
        "estimator": report.bound.bound.description,
        "tokens": report.bound.bound.total_tokens,
        "held_out": report.held_out,
        "baselines": report.baselines,
        "below_unigram": report.gain,
        "known_words": report.known_words,
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
