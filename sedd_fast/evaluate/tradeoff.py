"""Quality against compute: texts drawn with every sampler and number of steps, timed and judged.

For each setting a :class:`Point`: seconds and network rows a text, and how far the drawn texts are
from real ones. The figures need no likelihood of the sampler:

    js         Jensen-Shannon divergence, in bits, of the frequencies of character n-grams in drawn
               and in held-out text, the mean over n = 1 .. 4
    ngram      bits a token of the drawn text under a Kneser-Ney model of the training text: near
               that of real text is good, below it the text is too tame
    entropy    unigram entropy of a text, nats
    genppl     generative perplexity (exponential of the mean) where a judge is given

Real text has its own figures, `Quality.real`, what a perfect model would get: of the held-out text,
as many texts as are drawn, evenly spaced; but for js, which needs two texts and is biased upwards
where they are short, of as much training text as is drawn against the held-out text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sedd_fast.evaluate.diversity import ngram_divergence, unigram_entropy
from sedd_fast.evaluate.generative import generative_perplexity
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.ngram import NGram
from sedd_fast.models.autoregressive import Autoregressive, generate
from sedd_fast.models.interface import device_of
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling.api import sample

ORDERS = (1, 2, 3, 4)
METRICS = ("js", "ngram", "entropy", "genppl")
#: What each metric is compared by: nearness to real text, or simply less is better.
LABELS = {
    "js": "n-gram divergence from held-out text, bits",
    "ngram": "bits per token under a Kneser-Ney 5-gram",
    "entropy": "unigram entropy, nats",
    "genppl": "generative perplexity",
}
_COUNTED = 2_000_000  # tokens of training text that the n-gram model reads at most

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Point:
    """One way of drawing texts.

    Attributes:
        sampler: a method of `sample`, or "ar" with its nucleus, as in "ar, top-p 0.95".
        steps: of the sampler; for the autoregressive model the tokens of a text.
        seconds: a text, in batches as measured.
        rows: sequences sent through the network for a text.
        positions: tokens sent through the network for a text.
        metrics: name -> figure.
    """

    sampler: str
    steps: int
    seconds: float
    rows: float
    positions: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How much is drawn.

    Args:
        texts: for each point.
        batch: texts drawn at once.
        length: tokens of a text.
        seed: of every point.
    """

    texts: int
    batch: int
    length: int
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """What drawn texts are measured by; make one with :meth:`of_text`.

    Attributes:
        held_out: real text, as characters.
        decode: tokens -> text.
        ngram: a model of the training text.
        real: the figures of real text.
        judge: for generative perplexity; None: without.
    """

    held_out: str
    decode: Decode
    ngram: NGram
    judge: Judge | None
    real: dict[str, float]

    @classmethod
    def of_text(
        cls,
        train: np.ndarray,
        held_out: np.ndarray,
        vocab_size: int,
        decode: Decode,
        budget: Budget,
        judge: Judge | None = None,
    ) -> Quality:
        """From the tokens of training and held-out text, (N,) and (M,).

        Raises:
            ValueError: the training text is shorter than what is drawn.
        """
        amount = budget.texts * budget.length
        if len(train) < amount:
            raise ValueError(
                f"texts: {budget.texts} of {budget.length} tokens are more than the {len(train)} "
                "of the training text, which must give as many to compare with; draw fewer"
            )
        ngram = NGram.fit(train[:_COUNTED], vocab_size, min(5, len(train)))
        text = decode(held_out.tolist())
        empty = cls(text, decode, ngram, judge, {})
        real = empty(spaced_rows(held_out, budget.length, budget.texts).tolist())
        last = spaced_rows(train[-amount:], budget.length, budget.texts)
        real |= empty.divergences([decode(row) for row in last.tolist()])
        return cls(text, decode, ngram, judge, real)

    def __call__(self, rows: Sequence[list[int]]) -> dict[str, float]:
        """The figures of texts given as tokens."""
        texts = [self.decode(row) for row in rows]
        figures = self.divergences(texts)
        figures["ngram"] = float(np.mean([self.ngram.bits_per_token(row) for row in rows]))
        figures["entropy"] = unigram_entropy(rows)
        if self.judge is not None:
            figures["genppl"] = generative_perplexity(self.judge, texts).exponential_of_mean
        return figures

    def divergences(self, texts: Sequence[str]) -> dict[str, float]:
        """js_1 .. js_4 of texts against the held-out text, and their mean js."""
        found = {f"js_{n}": ngram_divergence(texts, [self.held_out], n) for n in ORDERS}
        return {**found, "js": sum(found.values()) / len(ORDERS)}


@dataclass
class Load:
    """What went through a network inside :func:`counted`."""

    rows: int = 0
    positions: int = 0


@contextmanager
def counted(model: SEDD | Autoregressive) -> Iterator[Load]:
    """Count what a network reads, whichever of its methods is called: at its embedding."""
    load = Load()

    def count(module: nn.Module, given: tuple[Any, ...]) -> None:
        load.rows += given[0].shape[0]
        load.positions += given[0].numel()

    handle = model.vocab_embed.register_forward_pre_hook(count)
    try:
        yield load
    finally:
        handle.remove()


def measure_sampler(
    model: SEDD, method: str, steps: int, budget: Budget, quality: Quality | None = None
) -> Point:
    """Draw with one method at one number of steps.

    Raises:
        ValueError: the method is not for the model's graph.
    """

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        process = (model, model.graph, model.noise)
        return sample(*process, shape, steps, method, generator=generator)

    return _measure(model, method, steps, draw, budget, quality)


def measure_baseline(
    model: Autoregressive, top_p: float, budget: Budget, quality: Quality | None = None
) -> Point:
    """Draw from the autoregressive model with its cache."""

    def draw(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        return generate(model, shape, top_p, generator=generator)

    return _measure(model, f"ar, top-p {top_p:g}", budget.length, draw, budget, quality)


def _measure(
    model: SEDD | Autoregressive,
    name: str,
    steps: int,
    draw: Callable[[tuple[int, int], torch.Generator], Tensor],
    budget: Budget,
    quality: Quality | None,
) -> Point:
    generator = torch.Generator().manual_seed(budget.seed)
    rows: list[list[int]] = []
    seconds = 0.0
    with counted(model) as load:
        for start in range(0, budget.texts, budget.batch):
            size = min(budget.batch, budget.texts - start)
            began = _now(model)
            tokens = draw((size, budget.length), generator)
            seconds += _now(model) - began
            rows += tokens.tolist()
    n = budget.texts
    figures = quality(rows) if quality is not None else {}
    return Point(name, steps, seconds / n, load.rows / n, load.positions / n, figures)


def spaced_rows(tokens: np.ndarray, length: int, most: int) -> np.ndarray:
    """Rows of a text (N,), evenly spaced over it: (at most `most`, length) int64.

    A text shorter than `length` is one row.
    """
    length = min(length, len(tokens))
    rows = tokens[: len(tokens) // length * length].astype(np.int64).reshape(-1, length)
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]


def _now(model: nn.Module) -> float:
    """Seconds, once the device has done what it was asked."""
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def distance(metric: str, point: Point, real: dict[str, float]) -> float:
    """How far a point is from real text: for "js" the figure itself, else |figure - real|."""
    return point.metrics[metric] if metric == "js" else abs(point.metrics[metric] - real[metric])


def matches(
    points: Sequence[Point], baseline: Point, metric: str, real: dict[str, float]
) -> dict[str, Point | None]:
    """For each sampler its point of fewest steps that is as near to real text as the baseline.

    None for a sampler that never is. The figures have sampling errors: a match within them is one.
    """
    limit = distance(metric, baseline, real)
    found: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda p: p.steps):
        reached = distance(metric, point, real) <= limit
        if found.get(point.sampler) is None:
            found[point.sampler] = point if reached else None
    return found


def as_fast(points: Sequence[Point], baseline: Point) -> dict[str, Point | None]:
    """For each sampler its point of most steps that takes no longer than the baseline.

    Of what was measured: nothing is read off between points or beyond them. None for a sampler
    whose every point is slower.
    """
    found: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda p: p.steps):
        within = point.seconds <= baseline.seconds
        found[point.sampler] = point if within else found.get(point.sampler)
    return found
