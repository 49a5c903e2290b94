"""The n-gram baselines: probabilities that sum to one, a hand-computed case, scores of texts."""

import math
from pathlib import Path

import numpy as np
import pytest

from sedd_fast.evaluate.ngram import NGram, baseline_bits, unigram_bits

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def markov_text(length: int, vocab_size: int = 6, seed: int = 0) -> tuple[np.ndarray, float]:
    """A first-order Markov chain and its entropy rate in bits."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(vocab_size, 0.4), size=vocab_size)
    cdf, state, text = chain.cumsum(1), 0, np.empty(length, dtype=np.int64)
    for i, u in enumerate(rng.random(length)):
        state = min(int(np.searchsorted(cdf[state], u)), vocab_size - 1)
        text[i] = state
    rows = -(chain * np.log2(np.maximum(chain, 1e-300))).sum(1)
    return text, float(rows[text].mean())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_every_conditional_distribution_sums_to_one(order: int) -> None:
    text, _ = markov_text(400)
    model = NGram.fit(text, vocab_size=8, order=order)  # tokens 6 and 7 never occur
    rng = np.random.default_rng(1)
    contexts = [text[i : i + 6] for i in range(0, 390, 7)]
    contexts += [rng.integers(0, 8, size) for size in (0, 1, 2, 4, 9) for _ in range(10)]
    for context in contexts:
        probs = model.probs(context)
        assert probs.shape == (8,)
        assert probs.min() > 0
        assert probs.sum() == pytest.approx(1, abs=1e-12)


def test_a_bigram_by_hand() -> None:
    """Text 0 1 0 0 1, V = 3, order 2; too few counts, so discounts are 0.5, 1, 1.5."""
    model = NGram.fit([0, 1, 0, 0, 1], vocab_size=3, order=2)
    # Bigram types 01 (twice), 10, 00: tokens before 0: {1, 0}, before 1: {0}; 2 gives up 1, 1 half.
    unigram = np.array([1.0, 0.5, 0.0]) / 3 + 1.5 / 3 * np.full(3, 1 / 3)
    np.testing.assert_allclose(unigram.sum(), 1)
    # After 0: 01 twice, 00 once. After 1: 10 once. After 2: never seen.
    np.testing.assert_allclose(model.probs([0]), np.array([0.5, 1, 0]) / 3 + 1.5 / 3 * unigram)
    np.testing.assert_allclose(model.probs([1]), np.array([0.5, 0, 0]) + 0.5 * unigram)
    np.testing.assert_allclose(model.probs([2]), unigram)
    np.testing.assert_allclose(model.probs([]), unigram)
    expected = [unigram[1], model.probs([1])[0], model.probs([0])[2]]
    np.testing.assert_allclose(model.log_probs([1, 0, 2]), np.log(expected))


def test_discounts_of_chen_and_goodman() -> None:
    # n1 = 4, n2 = 3, n3 = 2, n4 = 1 tokens: Y = 4 / 10
    text = np.repeat(np.arange(10), [1, 1, 1, 1, 2, 2, 2, 3, 3, 4])
    model = NGram.fit(text, vocab_size=12, order=1)
    discounts = [1 - 2 * 0.4 * 3 / 4, 2 - 3 * 0.4 * 2 / 3, 3 - 4 * 0.4 * 1 / 2]
    np.testing.assert_allclose(model.levels[0].discounts[1:], discounts)
    spare = 4 * discounts[0] + 3 * discounts[1] + 3 * discounts[2]
    probs = model.probs([])
    np.testing.assert_allclose(probs[9], (4 - discounts[2]) / 20 + spare / 20 / 12)
    np.testing.assert_allclose(probs[11], spare / 20 / 12)


def test_scores_are_the_conditional_probabilities() -> None:
    text, _ = markov_text(500)
    model = NGram.fit(text, vocab_size=7, order=4)
    held_out = np.random.default_rng(2).integers(0, 7, 60)
    one_by_one = [math.log(model.probs(held_out[:i])[held_out[i]]) for i in range(60)]
    np.testing.assert_allclose(model.log_probs(held_out), one_by_one)
    assert model.bits_per_token(held_out) == pytest.approx(-np.mean(one_by_one) / math.log(2))
    assert model.log_probs([]).shape == (0,)


def test_finds_the_entropy_of_a_markov_chain() -> None:
    text, entropy = markov_text(60_000)
    train, held_out = text[:50_000], text[50_000:]
    bits = {n: NGram.fit(train, 6, n).bits_per_token(held_out) for n in (1, 2, 3)}
    assert bits[2] == pytest.approx(entropy, abs=0.02)
    assert bits[3] < bits[2] + 0.01  # more context than the chain has costs next to nothing
    assert bits[1] > bits[2] + 0.3
    assert bits[1] == pytest.approx(unigram_bits(train, held_out, 6), abs=0.01)


def test_a_large_vocabulary_does_not_overflow() -> None:
    size = 50_257  # size^5 > 2^63
    text = np.random.default_rng(3).integers(size - 50, size, 2000)
    model = NGram.fit(text, size, order=6)
    assert model.probs(text[100:105]).sum() == pytest.approx(1)
    assert model.bits_per_token(text) < 4


def test_unigram() -> None:
    bits = [unigram_bits([0, 0, 1], [token], vocab_size=3) for token in range(3)]
    np.testing.assert_allclose(bits, -np.log2(np.array([3, 2, 1]) / 6))


def test_baseline_bits() -> None:
    text, entropy = markov_text(20_000)
    bits = baseline_bits(text[:18_000], text[18_000:], vocab_size=6, order=3)
    assert list(bits) == ["uniform", "unigram", "3-gram"]
    assert bits["uniform"] == pytest.approx(math.log2(6))
    assert bits["uniform"] > bits["unigram"] > bits["3-gram"] > entropy - 0.05


def test_real_text() -> None:
    path = SHARED / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("no tinyshakespeare beside the checkout")
    text = np.frombuffer(path.read_bytes(), dtype=np.uint8)[:300_000].astype(np.int64)
    bits = baseline_bits(text[:280_000], text[280_000:], vocab_size=256)
    assert 2.0 < bits["5-gram"] < 2.6 < bits["unigram"] < 5.2


@pytest.mark.parametrize(
    ("tokens", "order", "error", "message"),
    [
        ([0.5], 1, TypeError, "tokens must be integers"),
        ([[0, 1]], 1, ValueError, "tokens must be 1-D"),
        ([0, 5], 1, ValueError, r"tokens must lie in 0 .. 4, got 0 .. 5"),
        ([-1, 2], 1, ValueError, "tokens must lie in"),
        ([1, 2], 3, ValueError, "order must lie between 1 and the 2 tokens"),
        ([1, 2], 0, ValueError, "order must lie"),
    ],
)
def test_refuses(tokens: list, order: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NGram.fit(tokens, vocab_size=5, order=order)
    if order == 1:
        with pytest.raises(error, match=message):
            unigram_bits(tokens, [0], vocab_size=5)
