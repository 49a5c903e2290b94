"""Baselines for a language model on the same tokens: n-gram, unigram and uniform.

``NGram`` is interpolated Kneser-Ney with modified discounts, the classical language model. With
c the count of (context, w), C the sum over w, and D(c) a discount that depends on c = 1, 2, 3+,

    p_k(w | context) = (c - D(c)) / C  +  (sum over w' of D(c')) / C * p_{k-1}(w | shorter context)
    p_0 = 1 / V

where counts of the highest order are those of the text and counts of a lower order are the
numbers of distinct tokens seen before the k-gram. For a context never seen, p_k is p_{k-1}.
Every token of the vocabulary, seen or not, has a positive probability.

Source: Chen and Goodman 1998 (TR-10-98, Harvard), sections 2.7 and 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

#: Discounts of counts 0, 1, 2, 3+ where a text is too small or too regular to estimate them.
_FALLBACK = (0.0, 0.5, 1.0, 1.5)
_CHUNK = 1 << 18  # tokens scored at a time


@dataclass(frozen=True)
class _Level:
    """The k-grams of one order, as children of their (k-1)-gram contexts.

    Attributes:
        codes: (T,) sorted; context number * V + last token. A k-gram's number is its index here.
        counts: (T,) counts, of occurrences or of left neighbours.
        discounts: (4,) for counts 0, 1, 2, 3+.
        totals: (contexts,) sum of counts over a context's children.
        spare: (contexts,) sum of discounts, the count given to the lower order.
    """

    codes: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray
    totals: np.ndarray
    spare: np.ndarray

    def find(self, contexts: np.ndarray, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
        """Numbers of the k-grams (context, token), -1 for one never seen."""
        code = contexts * vocab_size + tokens
        at = np.minimum(np.searchsorted(self.codes, code), len(self.codes) - 1)
        return np.where((contexts >= 0) & (tokens >= 0) & (self.codes[at] == code), at, -1)


@dataclass(frozen=True)
class NGram:
    """An interpolated Kneser-Ney model; make one with :meth:`fit`.

    Example:
        >>> model = NGram.fit(train_tokens, vocab_size=96, order=5)
        >>> model.bits_per_token(held_out_tokens)
    """

    order: int
    vocab_size: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, tokens: Sequence[int] | np.ndarray, vocab_size: int, order: int = 5) -> "NGram":
        """Count a text.

        Args:
            tokens: (N,) integers 0 .. vocab_size - 1, in reading order.
            vocab_size: size V of the vocabulary, tokens never seen included.
            order: n, the context is n - 1 tokens; at least 1, at most N.

        Raises:
            TypeError, ValueError: tokens that are not integers, not 1-D or out of range, a text
                shorter than ``order``.
        """
        text = _as_tokens(tokens, vocab_size)
        if not 1 <= order <= len(text):
            raise ValueError(
                f"order must lie between 1 and the {len(text)} tokens of the text, got {order}"
            )
        grams, occurrences = _number_grams(text, vocab_size, order)
        levels = []
        for k in range(1, order + 1):
            codes, numbers = grams[k]
            counts = occurrences if k == order else _left_neighbours(grams[k + 1], numbers)
            discounts = _discounts(counts)
            sum_of = partial(np.bincount, codes // vocab_size, minlength=len(grams[k - 1][0]))
            totals, spare = sum_of(weights=counts), sum_of(weights=discounts[np.minimum(counts, 3)])
            levels.append(_Level(codes, counts, discounts, totals, spare))
        return cls(order, vocab_size, tuple(levels))

    def log_probs(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Natural log of p(token | up to n - 1 tokens before it), each token of a text; (N,)."""
        text = _as_tokens(tokens, self.vocab_size)
        if not len(text):
            return np.zeros(0)
        padded = np.concatenate([np.full(self.order - 1, -1), text])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.order)  # (N, n)
        starts = range(0, len(text), _CHUNK)
        chunks = [np.log(self._window_probs(windows[i : i + _CHUNK])) for i in starts]
        return np.concatenate(chunks)

    def probs(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """p(. | context), (V,) float64; only the last n - 1 tokens of the context are used."""
        given = _as_tokens(context, self.vocab_size)[::-1][: self.order - 1][::-1]
        windows = np.full((self.vocab_size, self.order), -1)
        windows[:, -1] = np.arange(self.vocab_size)
        windows[:, self.order - 1 - len(given) : -1] = given
        return self._window_probs(windows)

    def bits_per_token(self, tokens: Sequence[int] | np.ndarray) -> float:
        """Mean of -log2 p over a text."""
        return _bits(self.log_probs(tokens))

    def _window_probs(self, windows: np.ndarray) -> np.ndarray:
        """p(last token | the others) of (M, n) windows, -1 where the context does not reach."""
        probs = np.full(len(windows), 1 / self.vocab_size)
        for k, level in enumerate(self.levels, start=1):
            context = self._number(windows[:, self.order - k : self.order - 1])
            gram = level.find(context, windows[:, -1], self.vocab_size)
            counts = np.where(gram >= 0, level.counts[gram], 0)
            kept = counts - level.discounts[np.minimum(counts, 3)]
            total = np.where(context >= 0, level.totals[context], 0)
            seen = total > 0
            mixed = (kept + level.spare[context] * probs) / np.where(seen, total, 1)
            probs = np.where(seen, mixed, probs)
        return probs

    def _number(self, grams: np.ndarray) -> np.ndarray:
        """Numbers of the k-grams (M, k), -1 for one never seen."""
        number = np.zeros(len(grams), dtype=np.int64)
        for level, tokens in zip(self.levels, grams.T, strict=False):
            number = level.find(number, tokens, self.vocab_size)
        return number


def unigram_bits(
    train: Sequence[int] | np.ndarray, held_out: Sequence[int] | np.ndarray, vocab_size: int
) -> float:
    """Bits per held-out token under the token frequencies of `train`, smoothed by Laplace's rule.

        p(w) = (count of w + 1) / (N + V)

    Raises:
        TypeError, ValueError: as :meth:`NGram.fit`.
    """
    counts = np.bincount(_as_tokens(train, vocab_size), minlength=vocab_size) + 1
    return _bits(np.log(counts / counts.sum())[_as_tokens(held_out, vocab_size)])


def baseline_bits(
    train: Sequence[int] | np.ndarray,
    held_out: Sequence[int] | np.ndarray,
    vocab_size: int,
    order: int = 5,
) -> dict[str, float]:
    """Bits per held-out token of each baseline: "uniform", "unigram" and, say, "5-gram"."""
    return {
        "uniform": math.log2(vocab_size),
        "unigram": unigram_bits(train, held_out, vocab_size),
        f"{order}-gram": NGram.fit(train, vocab_size, order).bits_per_token(held_out),
    }


def _number_grams(
    text: np.ndarray, vocab_size: int, order: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Number the k-grams of a text, k = 0 .. order, in the order of their codes.

    Returns:
        for each k ``(codes (T,), numbers (N - k + 1,))``, the number of the k-gram that starts at
        each position; and how often each k-gram of the highest order occurs.
    """
    # Numbers, not packed tokens: V^5 of a large vocabulary passes 2^63, T * V does not.
    grams = [(np.zeros(1, dtype=np.int64), np.zeros(len(text) + 1, dtype=np.int64))]
    occurrences = np.zeros(0, dtype=np.int64)
    for k in range(1, order + 1):
        code = grams[-1][1][: len(text) - k + 1] * vocab_size + text[k - 1 :]
        codes, numbers, occurrences = np.unique(code, return_inverse=True, return_counts=True)
        grams.append((codes, numbers))
    return grams, occurrences


def _left_neighbours(longer: tuple[np.ndarray, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The number of distinct tokens before each k-gram, that is of (k+1)-grams that end in it."""
    codes, longer_numbers = longer
    suffix = np.empty(len(codes), dtype=np.int64)
    suffix[longer_numbers] = numbers[1:]  # all occurrences of a (k+1)-gram end in one k-gram
    return np.bincount(suffix, minlength=int(numbers.max()) + 1)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D(c) = c - (c + 1) Y n_{c+1} / n_c, Y = n_1 / (n_1 + 2 n_2); n_c: how many have count c."""
    n = np.bincount(counts, minlength=5)[:5].astype(float)
    if not n[1:].all():
        return np.array(_FALLBACK)
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([0.0, *(c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3))])
    return found if (found[1:] > 0).all() else np.array(_FALLBACK)


def _bits(log_probs: np.ndarray) -> float:
    return float(-log_probs.mean() / math.log(2)) if len(log_probs) else math.nan


def _as_tokens(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    array = np.asarray(tokens)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"tokens must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"tokens must be 1-D, got shape {array.shape}; join blocks with .ravel()")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(
            f"tokens must lie in 0 .. {vocab_size - 1}, got {array.min()} .. {array.max()}; "
            "is vocab_size that of the tokenizer?"
        )
    return array.astype(np.int64)
