"""Generative perplexity: the perplexity of samples under a judge, and their diversity.

With n_i predicted tokens of nats_i = -ln p in sample i, two averages are in use:

    mean of exponentials     mean over samples of exp(nats_i / n_i)     SEDD's training script
    exponential of the mean  exp(sum of nats_i / sum of n_i)            MDLM's code

For samples of equal length the first is never below the second (Jensen's inequality), and a single
bad sample can change it much. A sample that repeats itself has a low perplexity: compare both
beside the entropy.

Source: Lou et al. 2024 (arXiv 2310.16834), section 5; Sahoo et al. 2024 (arXiv 2406.07524).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sedd_fast.evaluate.diversity import distinct_ngrams, unigram_entropy
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.standard_error import student_factor
from sedd_fast.progress import Report

ORDERS = (1, 2, 3, 4)


def _covering(stderr: Tensor, count: int) -> float:
    """A standard error over ``count`` samples as :mod:`standard_error` defines it."""
    return float(stderr * student_factor(torch.tensor(count - 1.0)))


@dataclass(frozen=True)
class GenerativePerplexity:
    """The result of :func:`generative_perplexity`.

    Attributes:
        nats: (N,) float64, -ln p of each sample under the judge.
        tokens: (N,) int64, the number of its predicted tokens.
        entropy: unigram entropy of a sample, the mean over samples, nats per token.
        distinct: n -> number of distinct n-grams over number of n-grams.
        units: tokens that entropy and distinct count: the "judge"'s or the "model"'s.
    """

    nats: Tensor
    tokens: Tensor
    entropy: float
    distinct: dict[int, float]
    units: str

    @property
    def scored(self) -> Tensor:
        """(N,) bool: the samples with a predicted token; the others are left out."""
        return self.tokens > 0

    @property
    def mean_of_exponentials(self) -> float:
        """Mean over samples of their own perplexity."""
        return float(self._own().mean())

    @property
    def mean_of_exponentials_stderr(self) -> float:
        """Its standard error over samples, for few by Student's t; NaN for one sample."""
        own = self._own()
        return _covering(own.std() / math.sqrt(len(own)), len(own)) if len(own) > 1 else math.nan

    @property
    def exponential_of_mean(self) -> float:
        """exp of total nats over total tokens."""
        return math.exp(float(self.nats.sum()) / int(self.tokens.sum()))

    @property
    def exponential_of_mean_stderr(self) -> float:
        """Its standard error over samples, to first order (of a ratio of sums), likewise."""
        total, count = int(self.tokens.sum()), int(self.scored.sum())
        if count < 2:
            return math.nan
        rest = self.nats - self.tokens * (float(self.nats.sum()) / total)
        spread = rest.square().sum().sqrt() / total * math.sqrt(count / (count - 1))
        return self.exponential_of_mean * _covering(spread, count)

    def _own(self) -> Tensor:
        return (self.nats[self.scored] / self.tokens[self.scored]).exp()

    def figures(self) -> dict[str, Any]:
        """All figures by name, as JSON records have them."""
        return {
            "mean_of_exponentials": self.mean_of_exponentials,
            "mean_of_exponentials_stderr": self.mean_of_exponentials_stderr,
            "exponential_of_mean": self.exponential_of_mean,
            "exponential_of_mean_stderr": self.exponential_of_mean_stderr,
            "unigram_entropy_nats": self.entropy,
            **{f"distinct_{n}": value for n, value in self.distinct.items()},
            "counted_in_tokens_of": self.units,
            "texts": len(self.nats),
            "texts_scored": int(self.scored.sum()),
            "tokens_scored": int(self.tokens.sum()),
        }


def generative_perplexity(
    judge: Judge,
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]] | None = None,
    batch_size: int = 4,
    on_batch: Report | None = None,
) -> GenerativePerplexity:
    """The judge's perplexity of samples, their entropy and their distinct n-grams.

    Args:
        judge: see :class:`sedd_fast.evaluate.judge.Judge` for how it reads a text.
        texts: the samples as text, at least one of two tokens.
        tokens: the samples as the model's own tokens, for entropy and n-grams; the judge's if None.
        batch_size: windows that the judge reads at once.
        on_batch: called with the progress, as :meth:`Judge.nats` does.

    Raises:
        ValueError: no text has a token to predict.
    """
    encoded = judge.encode(texts) if texts else []
    nats = judge.nats(encoded, batch_size, on_batch)
    counts = torch.tensor([len(row) for row in nats])
    if not counts.any():
        raise ValueError(
            f"texts: none of {len(texts)} has two tokens of the judge, so nothing is predicted"
        )
    own = encoded if tokens is None else tokens
    return GenerativePerplexity(
        torch.stack([row.sum() for row in nats]),
        counts,
        unigram_entropy(own),
        {n: distinct_ngrams(own, n) for n in ORDERS},
        "judge" if tokens is None else "model",
    )
