"""--batch-size is a matter of memory: the same seed gives the same samples and figures."""

import json

import pytest

import sedd_fast as sf
from helpers.tiny_judge import save_tiny_judge
from sedd_fast.data.tokenizers import CharTokenizer
from sedd_fast.evaluate.tradeoff import Budget, measure
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.sampling import SamplerConfig


def tokens(result):
    assert result.code == 0, result.err
    return [record["tokens"] for record in result.records]


@pytest.mark.parametrize("more", [["--method", "hit"], ["--remask", "cap:0.5"], []])
def test_sample(run_dir, call, more):
    args = ["sample", "-m", run_dir, "--seed", 1, "--json", "--steps", 4, "--keep-after-eot", *more]
    together = tokens(call(*args, "-n", 5, "--batch-size", 5))
    assert len(set(map(tuple, together))) > 1
    assert tokens(call(*args, "-n", 5, "--batch-size", 2)) == together
    assert tokens(call(*args, "-n", 2)) == together[:2]  # nor does the number of samples
    assert tokens(call(*args[:4], 2, *args[5:], "-n", 2)) != together[:2]


def test_infill(run_dir, call, tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [{"template": "the [6]"}, {"template": "[9] cat"}, {"prefix": "cat ", "length": 12}]
    args = ["infill", "-m", run_dir, "--from", path, "--steps", 3, "--seed", 5, "--json",
            "--keep-after-eot", "-n", 3]  # fmt: skip

    def draw(*chosen, size):
        path.write_text("".join(json.dumps(line) + "\n" for line in chosen))
        return tokens(call(*args, "--batch-size", size))

    together = draw(*lines, size=16)
    assert draw(*lines, size=2) == together
    # Of the same place in the file, whatever the other requests are.
    assert draw(lines[1], lines[1], lines[2], size=4)[3:] == together[3:]


def test_eval(run_dir, call):
    args = ["eval", "--model", run_dir, "--samples", 4, "--json", "--batch-size"]
    one, other = (call(*args, size).records[0] for size in (3, 16))
    for name in ("nats", "perplexity", "bits_per_token_stderr"):
        # The standard error of nearly equal losses is small beside their rounding.
        assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("kind", [sf.SEDD, Autoregressive])
def test_genppl_and_tradeoff(kind, call, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    config = sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=24)
    kind(config).save_pretrained(tmp_path)
    CharTokenizer("a cdot").save(tmp_path)
    judge = save_tiny_judge(tmp_path / "judge")
    args = ["genppl", "-m", tmp_path, "--judge", judge, "-n", 5, "--keep-after-eot", "--json"]
    args += ["-s", 4] * (kind is sf.SEDD)
    one, other = (call(*args, "--batch-size", size).records[0] for size in (2, 5))
    assert one["exponential_of_mean"] == pytest.approx(other["exponential_of_mean"], rel=1e-6)
    seen = []
    for size in (2, 5):
        measure(
            kind(config),
            SamplerConfig(steps=4),
            Budget(5, size, 24),
            lambda r: seen.append(r) or {},
        )
    assert seen[0] == seen[1]
