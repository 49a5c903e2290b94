"""Quality against compute: every sampler at every number of steps, timed and scored.

Each setting gives a :class:`Point`: seconds and network rows per sample, and how far the samples
are from real text. The metrics need no likelihood of the sampler:

    js         Jensen-Shannon divergence, in bits, between the frequencies of character n-grams in
               the samples and in held-out text, the mean over n = 1 .. 4
    ngram      bits per token of the samples under a Kneser-Ney model of the training text: near
               the value of real text is good, below it the samples vary too little
    entropy    unigram entropy of a sample, nats
    genppl     generative perplexity (exponential of the mean), if there is a judge

`Quality.real` has the values of real text, which a perfect model would reach. They are computed on
the held-out text, from as many sequences as are sampled, evenly spaced. Only js, which compares two
texts and is biased upwards where they are short, compares as much training text as is sampled with
the held-out text.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sedd_fast.data.blocks import Blocks
from sedd_fast.evaluate.diversity import NGrams, unigram_entropy
from sedd_fast.evaluate.generative import ORDERS, generative_perplexity
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.ngram import NGram
from sedd_fast.models.autoregressive import Autoregressive, generate
from sedd_fast.models.interface import device_of
from sedd_fast.models.sedd import SEDD
from sedd_fast.sampling import RowStreams, SamplerConfig, sample

#: Axis labels of the metrics.
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
    """The measurements of one sampler at one number of steps.

    Attributes:
        sampler: a method of `sample`, or "ar" with its nucleus, as in "ar, top-p 0.95".
        steps: steps of the sampler; for the autoregressive model the tokens of a sample.
        seconds: time per sample, sampled in batches.
        rows: sequences sent through the network per sample.
        positions: tokens sent through the network per sample.
        metrics: name -> value.
    """

    sampler: str
    steps: int
    seconds: float
    rows: float
    positions: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How much is sampled for each point.

    Args:
        num_samples: number of samples.
        batch_size: samples in a batch.
        length: tokens of a sample.
        seed: random seed.
    """

    num_samples: int
    batch_size: int
    length: int
    seed: int = 0

    def one_batch(self) -> "Budget":
        """A budget of one batch."""
        return replace(self, num_samples=self.batch_size)


@dataclass(frozen=True)
class Quality:
    """The metrics of samples; make one with :meth:`of_text`.

    Attributes:
        held_out: the n-grams of the characters of the held-out text, by n.
        decode: tokens -> text.
        ngram: an n-gram model of the training text.
        judge: the judge of generative perplexity; None: leave it out.
        real: the metrics of real text.
    """

    held_out: dict[int, NGrams]
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
    ) -> "Quality":
        """From the tokens of training and held-out text, (N,) and (M,).

        Raises:
            ValueError: the training text is shorter than the samples together, or the held-out
                text is empty.
        """
        amount = budget.num_samples * budget.length
        if len(train) < amount:
            raise ValueError(
                f"num_samples: {budget.num_samples} of {budget.length} tokens are more than the "
                f"{len(train)} of the training text, which must be as long, to be compared; draw "
                "fewer"
            )
        if not len(held_out):
            raise ValueError("held-out text: it has no token to compare with; give more text")
        ngram = NGram.fit(train[:_COUNTED], vocab_size, min(5, len(train)))
        text = decode(held_out.tolist())
        grams = {n: NGrams.of([text], n) for n in ORDERS}
        quality = cls(grams, decode, ngram, judge, {})
        real = quality(spaced_rows(held_out, budget.length, budget.num_samples).tolist())
        last = spaced_rows(train[-amount:], budget.length, budget.num_samples)
        real |= quality.divergences([decode(row) for row in last.tolist()])
        return replace(quality, real=real)

    def __call__(self, rows: Sequence[list[int]]) -> dict[str, float]:
        """The metrics of samples, given as tokens."""
        texts = [self.decode(row) for row in rows]
        metrics = self.divergences(texts)
        metrics["ngram"] = float(np.mean([self.ngram.bits_per_token(row) for row in rows]))
        metrics["entropy"] = unigram_entropy(rows)
        if self.judge is not None:
            metrics["genppl"] = generative_perplexity(self.judge, texts).exponential_of_mean
        return metrics

    def divergences(self, texts: Sequence[str]) -> dict[str, float]:
        """js_1 .. js_4 of samples against the held-out text, and their mean js."""
        found = {
            f"js_{n}": NGrams.of(texts, n).divergence(real) for n, real in self.held_out.items()
        }
        return {**found, "js": sum(found.values()) / len(ORDERS)}


@contextmanager
def counted(model: SEDD | Autoregressive) -> Iterator[list[torch.Size]]:
    """The shapes (B, L) of a network's inputs, recorded at its embedding, in the order of calls."""
    shapes: list[torch.Size] = []
    embedding = model.vocab_embed
    with embedding.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape)):
        yield shapes


def draw_batch(
    model: SEDD | Autoregressive,
    config: SamplerConfig,
    length: int,
    streams: RowStreams,
) -> Tensor:
    """Draw a sample for each stream, (B, L); the autoregressive model uses `config.top_p` alone."""
    shape = (len(streams), length)
    if isinstance(model, Autoregressive):
        return generate(model, shape, config.top_p, generator=streams)
    return sample(model, model.graph, model.noise, shape, generator=streams, **vars(config))


def measure(
    model: SEDD | Autoregressive,
    config: SamplerConfig,
    budget: Budget,
    quality: Quality | None = None,
) -> Point:
    """Draw with one sampler at one number of steps, or from the autoregressive model.

    Raises:
        ValueError: the method is not for the model's graph.
    """
    if isinstance(model, Autoregressive):
        name, steps = f"ar, top-p {config.top_p:g}", budget.length
    else:
        name, steps = config.method, config.steps or budget.length
    rows: list[list[int]] = []
    seconds = 0.0
    with counted(model) as shapes:
        for start in range(0, budget.num_samples, budget.batch_size):
            texts = range(start, min(start + budget.batch_size, budget.num_samples))
            streams = RowStreams.of_texts(budget.seed, texts)
            began = _now(model)
            tokens = draw_batch(model, config, budget.length, streams)
            seconds += _now(model) - began
            rows += tokens.tolist()
    n = budget.num_samples
    metrics = quality(rows) if quality is not None else {}
    network_rows = sum(shape[0] for shape in shapes)
    positions = sum(shape.numel() for shape in shapes)
    return Point(name, steps, seconds / n, network_rows / n, positions / n, metrics)


def spaced_rows(tokens: np.ndarray, length: int, most: int) -> Tensor:
    """Rows of a text (N,), evenly spaced over it: (at most `most`, length) int64.

    A text shorter than `length` is one row.
    """
    return Blocks(tokens, min(length, len(tokens))).spaced(most).tokens


def _now(model: nn.Module) -> float:
    """The time in seconds, after the work on the model's device has finished (synchronises it)."""
    if device_of(model).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def distance(metric: str, point: Point, real: dict[str, float]) -> float:
    """How far a point is from real text: for "js" the metric itself, else |metric - real|."""
    return point.metrics[metric] if metric == "js" else abs(point.metrics[metric] - real[metric])


def matches(
    points: Sequence[Point], baseline: Point, metric: str, real: dict[str, float]
) -> dict[str, Point | None]:
    """For each sampler its point of fewest steps that is as near to real text as the baseline.

    None for a sampler without such a point. The metrics have sampling errors, which are not taken
    into account.
    """
    limit = distance(metric, baseline, real)
    found: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda p: p.steps):
        if found.get(point.sampler) is None:
            found[point.sampler] = point if distance(metric, point, real) <= limit else None
    return found


def as_fast(points: Sequence[Point], baseline: Point) -> dict[str, Point | None]:
    """For each sampler its point of most steps that takes no longer than the baseline.

    Only measured points count, without interpolation. None for a sampler whose every point is
    slower.
    """
    found: dict[str, Point | None] = {}
    for point in sorted(points, key=lambda p: p.steps):
        within = point.seconds <= baseline.seconds
        found[point.sampler] = point if within else found.get(point.sampler)
    return found
