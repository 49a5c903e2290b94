"""`sedd-fast genppl`: samples of a file, of SEDD and of the autoregressive baseline."""

import json

import pytest

import sedd_fast as sf
from helpers.tiny_judge import save_tiny_judge
from sedd_fast.data.tokenizers import CharTokenizer
from sedd_fast.models.autoregressive import Autoregressive

TEXTS = ["the cat sat on a mat.", "dogs ran", "the the the the the the the the the", "cat"]


@pytest.fixture(scope="module")
def judge_dir(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


def test_genppl_of_a_file(judge_dir, call, tmp_path):
    path, saved = tmp_path / "texts.jsonl", tmp_path / "found.json"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    result = call("genppl", path, "--judge", judge_dir, "--save", saved)
    assert result.code == 0
    record = json.loads(saved.read_text())
    assert (record["texts"], record["texts_scored"], record["tokens_scored"]) == (4, 3, 14)
    assert record["counted_in_tokens_of"] == "judge"
    assert record["samples"]["file"] == str(path)
    for word in ("mean of exponentials", "exponential of mean", "unigram entropy", "distinct"):
        assert word in result.out
    path.write_text("".join(json.dumps({"text": t, "tokens": [1, 1]}) + "\n" for t in TEXTS))
    result = call("genppl", path, "--judge", judge_dir, "--json")
    again = json.loads(result.out)
    assert again["exponential_of_mean"] == record["exponential_of_mean"]
    assert (again["counted_in_tokens_of"], again["unigram_entropy_nats"]) == ("model", 0)


def test_genppl_from_a_checkpoint(judge_dir, call, tmp_path):
    config = sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=24)
    sf.SEDD(config).save_pretrained(tmp_path)
    CharTokenizer("a cdot").save(tmp_path)
    args = ["genppl", "-m", tmp_path, "--judge", judge_dir, "-n", 5, "-s", 4, "--json"]
    result = call(*args, "--batch-size", 2, "--keep-after-eot")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["texts"] == 5
    assert record["samples"]["length"] == 24
    assert record["samples"]["method"] == "analytic"


def test_genppl_of_the_autoregressive_baseline(judge_dir, call, tmp_path):
    config = sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=24)
    Autoregressive(config).save_pretrained(tmp_path)
    CharTokenizer("a cdot").save(tmp_path)
    args = ["genppl", "-m", tmp_path, "--judge", judge_dir, "-n", 3, "--top-p", 0.9]
    result = call(*args, "--keep-after-eot", "--json")
    assert result.code == 0
    origin = json.loads(result.out)["samples"]
    assert origin["top_p"] == 0.9
    assert "steps" not in origin
    result = call(*args, "--keep-after-eot")
    assert "autoregressive, top-p 0.9, length 24, seed 0" in result.out
    result = call(*args, "--method", "hit")
    assert result.code == 2
    assert "--method: an autoregressive model draws a token at a time; leave it out" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "it holds no text"),
        ("not json\n", "line 1: not JSON"),
        ('{"words": "a"}\n', 'line 1: no "text"'),
    ],
)
def test_unusable_samples(content, message, judge_dir, call, tmp_path):
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_text(content)
    result = call("genppl", path, "--judge", judge_dir)
    assert result.code == 2
    assert message in result.err


def test_genppl_needs_one_source(judge_dir, call):
    result = call("genppl", "--judge", judge_dir)
    assert result.code == 2
    assert "either SAMPLES.jsonl or --model" in result.err
