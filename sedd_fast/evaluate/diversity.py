"""Diversity of samples, and the divergence of their n-grams from those of real text.

Every function takes sequences of hashable units: token ids, or the characters of a string.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Units = Sequence[Hashable]


def unigram_entropy(sequences: Iterable[Units]) -> float:
    """Mean over sequences of the entropy of their own token frequencies, in nats.

        H = mean over sequences of  - sum over tokens w of (c_w / L) ln(c_w / L)

    where c_w is the count of w among the sequence's L tokens. It is at most ln L, and low for a
    sequence that repeats itself; NaN without a token. Zheng et al. 2024 (arXiv 2409.02908) report
    it beside generative perplexity, which falls as samples become repetitive.

    Example:
        >>> unigram_entropy([[1, 1, 2, 2]]) == math.log(2)
        True
    """
    entropies = [_entropy(Counter(sequence)) for sequence in sequences if len(sequence)]
    return sum(entropies) / len(entropies) if entropies else math.nan


def distinct_ngrams(sequences: Iterable[Units], n: int) -> float:
    """Distinct n-grams over all n-grams of all sequences together, in (0, 1]; NaN without one.

    Li et al. 2016 (arXiv 1510.03055). It falls with the number of sequences: compare equal numbers.
    """
    counts = ngram_counts(sequences, n)
    return len(counts) / counts.total() if counts else math.nan


def ngram_divergence(drawn: Iterable[Units], real: Iterable[Units], n: int) -> float:
    """Jensen-Shannon divergence of the n-gram frequencies of two sets of texts, in bits.

        JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2,    0 for equal frequencies, at most 1

    It is biased upwards for little text (two halves of one text have a positive divergence):
    compare equal amounts, beside the value of real text against real text. NaN where either has no
    n-gram.
    """
    return NGrams.of(drawn, n).divergence(NGrams.of(real, n))


@dataclass(frozen=True)
class NGrams:
    """The n-grams of a set of texts, counted once for several comparisons.

    Attributes:
        counts: how often each n-gram occurs.
        total: the number of n-grams.
        entropy: the entropy of their frequencies, in nats.
    """

    counts: Counter[Any]
    total: int
    entropy: float

    @classmethod
    def of(cls, sequences: Iterable[Units], n: int) -> "NGrams":
        counts = ngram_counts(sequences, n)
        return cls(counts, counts.total(), _entropy(counts))

    def divergence(self, other: "NGrams") -> float:
        """Jensen-Shannon divergence of the frequencies, in bits (:func:`ngram_divergence`)."""
        if not self.total or not other.total:
            return math.nan
        few, many = sorted((self, other), key=lambda grams: len(grams.counts))
        # Sum of m ln m over the n-grams of `many`, as if `few` had none, and what those change.
        nats = -(many.entropy + math.log(2)) / 2
        for gram, count in few.counts.items():
            q = many.counts[gram] / many.total / 2
            m = q + count / few.total / 2
            nats += m * math.log(m) - (q * math.log(q) if q else 0.0)
        return max(0.0, (-nats - (few.entropy + many.entropy) / 2) / math.log(2))


def ngram_counts(sequences: Iterable[Units], n: int) -> Counter[Any]:
    """How often each n-gram occurs within the sequences.

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; 1 to 4 are usual")
    counts: Counter[Any] = Counter()
    for sequence in sequences:
        counts.update(zip(*(sequence[i:] for i in range(n)), strict=False))
    return counts


def _entropy(counts: Counter[Any]) -> float:
    """Entropy of the frequencies, in nats."""
    total = counts.total()
    return -sum(c / total * math.log(c / total) for c in counts.values())
