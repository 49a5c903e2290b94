"""MAUVE on given features, and features kept in a file."""

import sys

import numpy as np
import pytest

from helpers.tiny_judge import save_tiny_judge
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.mauve import Features, mauve_score

needs_library = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("mauve") is None,
    reason="the mauve-text library is not installed",
)


def blob(shift: float, seed: int, count: int = 300, judge: str = "tiny") -> Features:
    values = np.random.default_rng(seed).normal(shift, 1, (count, 8)).astype(np.float32)
    return Features(values, judge, 16)


@needs_library
def test_equal_sets_are_near_one_and_distant_ones_near_zero():
    same = mauve_score(blob(0, 1), blob(0, 2), clusters=10)
    near = mauve_score(blob(0, 1), blob(0.5, 2), clusters=10)
    far = mauve_score(blob(0, 1), blob(8, 2), clusters=10)
    assert same.mauve > 0.9
    assert same.mauve > near.mauve > far.mauve
    assert far.mauve < 0.05
    assert (same.clusters, same.drawn, same.real) == (10, 300, 300)
    assert mauve_score(blob(0, 1), blob(0, 2), clusters=10) == same  # the seed decides
    assert mauve_score(blob(0, 1), blob(0, 2), clusters=10, seed=1) != same


def test_features_that_do_not_belong_together():
    with pytest.raises(ValueError, match="judge: the drawn texts have features of tiny"):
        mauve_score(blob(0, 1), blob(0, 2, judge="other"))
    cut = Features(blob(0, 1).values, "tiny", 8)
    with pytest.raises(ValueError, match="max_tokens: the drawn texts have features of 16"):
        mauve_score(blob(0, 1), cut)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"needs mauve: pip install 'sedd-fast\[eval\]'"):
        mauve_score(blob(0, 1), blob(0, 2))


def test_features_round_trip(tmp_path):
    made = blob(0, 1, count=3)
    made.save(tmp_path / "f.npz")
    again = Features.load(tmp_path / "f.npz")
    assert np.array_equal(again.values, made.values)
    assert (again.judge, again.max_tokens) == ("tiny", 16)
    (tmp_path / "bad.npz").write_text("no")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("bad.npz", "other.npz"):
        with pytest.raises(ValueError, match="holds no features"):
            Features.load(tmp_path / name)
    with pytest.raises(ValueError, match="no file"):
        Features.load(tmp_path / "none.npz")


@pytest.fixture(scope="module")
def judge_dir(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


def test_features_of_texts_are_cut(judge_dir):
    judge = Judge.from_pretrained(str(judge_dir))
    long, short = (Features.of(judge, [t], 2) for t in ("the cat sat on", "the cat"))
    np.testing.assert_allclose(long.values, short.values, rtol=1e-4, atol=1e-5)
    assert Features.of(judge, ["the cat"]).max_tokens == judge.context
    with pytest.raises(ValueError, match="1 of 2 hold no token"):
        Features.of(judge, ["the cat", ""])


def test_features_of_a_text_without_tokens_do_not_depend_on_its_neighbours(judge_dir):
    judge = Judge.from_pretrained(str(judge_dir))
    texts = ["the cat", "", "the cat sat on a mat. dogs ran", ""]
    together = judge.features(judge.encode(texts))
    alone = [judge.features(judge.encode([text]))[0] for text in texts]
    for row, own in zip(together, alone, strict=True):
        np.testing.assert_allclose(row, own, atol=1e-5)
    assert (together.abs().sum(1) > 0).tolist() == [True, False, True, False]
