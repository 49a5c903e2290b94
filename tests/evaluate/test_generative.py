"""Generative perplexity against a hand computation, entropy, n-grams, and the command."""

import math
import sys

import pytest
import torch

from helpers.tiny_judge import save_tiny_judge
from sedd_fast.evaluate.diversity import (
    distinct_ngrams,
    ngram_counts,
    ngram_divergence,
    unigram_entropy,
)
from sedd_fast.evaluate.generative import generative_perplexity
from sedd_fast.evaluate.judge import Judge

TEXTS = ["the cat sat on a mat.", "dogs ran", "the the the the the the the the the", "cat"]


@pytest.fixture(scope="module")
def judge_dir(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(judge_dir):
    return Judge.from_pretrained(str(judge_dir))


def by_hand(judge, ids: list[int]) -> list[float]:
    """-ln p of each token but the first, from a softmax in float64, one prefix at a time."""
    found = []
    for i in range(1, len(ids)):
        logits = judge.model(torch.tensor([ids[:i]])).logits[0, -1].double()
        found.append(float(torch.logsumexp(logits, 0) - logits[ids[i]]))
    return found


def test_both_averages_by_hand(judge):
    found = generative_perplexity(judge, TEXTS, batch_size=3)
    with torch.no_grad():
        nats = [by_hand(judge, ids) for ids in judge.encode(TEXTS)]
    assert found.tokens.tolist() == [5, 1, 8, 0]
    for mine, theirs in zip(found.nats.tolist(), nats, strict=True):
        assert mine == pytest.approx(sum(theirs), rel=1e-5)
    own = [math.exp(sum(row) / len(row)) for row in nats if row]
    assert found.mean_of_exponentials == pytest.approx(sum(own) / 3, rel=1e-5)
    total = sum(sum(row) for row in nats)
    assert found.exponential_of_mean == pytest.approx(math.exp(total / 14), rel=1e-5)
    spread = torch.tensor(own).std() / math.sqrt(3) * 4.303 / 1.96  # Student's t, two degrees
    assert found.mean_of_exponentials_stderr == pytest.approx(float(spread), rel=3e-3)
    assert found.figures()["texts_scored"] == 3


def test_one_text_has_no_error(judge, recwarn):
    found = generative_perplexity(judge, TEXTS[:1])
    assert math.isnan(found.mean_of_exponentials_stderr)
    assert math.isnan(found.exponential_of_mean_stderr)
    assert not recwarn.list


def test_long_text_is_read_in_windows(judge):
    ids = judge.encode(["the cat sat on a mat. dogs ran " * 5])[0]
    assert (len(ids), judge.context) == (40, 16)
    with torch.no_grad():
        windows = [by_hand(judge, ids[start : start + 16]) for start in (0, 16, 32)]
    (nats,) = judge.nats([ids], batch_size=2)
    wanted = [value for window in windows for value in window]
    torch.testing.assert_close(nats, torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=0)


def test_ratio_error_is_that_of_repeated_drawing(judge):
    """The stated error of the exponential of the mean against the spread of a bootstrap."""
    words = ["the", "cat", "sat", "on", "a", "mat.", "dogs", "ran"]
    generator = torch.Generator().manual_seed(0)
    texts = [
        " ".join(words[i] for i in torch.randint(8, (3 + k % 9,), generator=generator))
        for k in range(200)
    ]
    found = generative_perplexity(judge, texts, batch_size=64)
    picks = torch.randint(200, (400, 200), generator=generator)
    values = (found.nats[picks].sum(1) / found.tokens[picks].sum(1)).exp()
    assert found.exponential_of_mean_stderr == pytest.approx(float(values.std()), rel=0.2)


def test_features_are_those_of_the_last_token(judge):
    encoded = judge.encode(TEXTS)
    together = judge.features(encoded, batch_size=3)
    assert together.shape == (4, 16)
    for ids, row in zip(encoded, together, strict=True):
        with torch.no_grad():
            out = judge.model(torch.tensor([ids]), output_hidden_states=True)
        torch.testing.assert_close(row, out.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-5)


def test_nothing_to_predict(judge):
    for texts in ([], ["cat"], [""]):
        with pytest.raises(ValueError, match="nothing is predicted"):
            generative_perplexity(judge, texts)


def test_judges_that_are_not_there(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(ValueError, match=r"--judge: .* could not be loaded"):
        Judge.from_pretrained(str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install 'sedd-fast\[eval\]'"):
        Judge.from_pretrained("gpt2-large")


# Diversity


def test_unigram_entropy():
    assert unigram_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy(["aaaa", "abab"]) == pytest.approx(math.log(2) / 2)
    assert unigram_entropy([[], [5]]) == 0
    assert math.isnan(unigram_entropy([[]]))


def test_distinct_ngrams():
    assert distinct_ngrams([[1, 2, 1, 2]], 1) == 0.5
    assert distinct_ngrams([[1, 2, 1, 2], [2, 1]], 2) == 2 / 4
    assert math.isnan(distinct_ngrams([[1]], 2))
    assert ngram_counts(["abc", "bc"], 2) == {("a", "b"): 1, ("b", "c"): 2}
    with pytest.raises(ValueError, match="n must be at least 1"):
        ngram_counts(["a"], 0)


def test_ngram_divergence():
    assert ngram_divergence(["abab"], ["ab", "ab"], 1) == 0
    assert ngram_divergence(["aa"], ["bb"], 2) == pytest.approx(1)
    p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.25, 0.75])
    entropy = torch.distributions.Categorical
    wanted = math.log(2) - entropy(p).entropy() / 2 - entropy(q).entropy() / 2
    found = ngram_divergence(["aaab"], ["abbb"], 1)
    assert found == pytest.approx(float(wanted) / math.log(2), rel=1e-5)
    assert math.isnan(ngram_divergence(["a"], ["b"], 2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngram_divergence_of_long_and_short_texts_by_the_definition(n):
    letters = torch.randint(5, (3000,), generator=torch.Generator().manual_seed(n)).tolist()
    few, many = [letters[:60]], [letters[60:2000], letters[2000:]]
    p, q = ngram_counts(few, n), ngram_counts(many, n)

    def nats(of: dict) -> float:
        return -sum(value * math.log(value) for value in of.values())

    p, q = ({gram: count / of.total() for gram, count in of.items()} for of in (p, q))
    mean = {gram: (p.get(gram, 0) + q.get(gram, 0)) / 2 for gram in p | q}
    wanted = (nats(mean) - (nats(p) + nats(q)) / 2) / math.log(2)
    assert ngram_divergence(few, many, n) == pytest.approx(wanted, rel=1e-12)
    assert ngram_divergence(many, few, n) == pytest.approx(wanted, rel=1e-12)
