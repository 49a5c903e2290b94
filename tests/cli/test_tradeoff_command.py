"""`sedd-fast tradeoff`: networks with a text, networks of a size, and what is refused."""

from __future__ import annotations

import json

import pytest

from sedd_fast.sampling import METHODS


def test_tradeoff_trains_its_baseline_and_compares(run_dir, call, tmp_path):
    args = ["tradeoff", "-m", run_dir, "--ar", tmp_path / "ar", "--steps", "2,4", "-t", 6, "-n", 4]
    result = call(*args, "--out", tmp_path)
    assert result.code == 0
    record = json.loads((tmp_path / "tradeoff.json").read_text())
    drawn = {(p["sampler"], p["steps"]) for p in record["points"]}
    usable = set(METHODS) - set(record["left_out"])
    assert {"analytic", "euler"} <= usable
    assert drawn == {(method, steps) for method in usable for steps in (2, 4)}
    assert [p["sampler"] for p in record["baselines"]] == ["ar, top-p 1", "ar, top-p 0.95"]
    assert set(record["matches"]["ar, top-p 1"]) == usable
    assert record["bound"]["bits_per_token"] > 0
    assert record["baseline_likelihood"]["estimator"].startswith("exact likelihood")
    assert record["real_text"]["js"] < min(p["metrics"]["js"] for p in record["points"])
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    for word in ("rows/text", "real text", "ar, top-p 0.95", "near to real text"):
        assert word in result.out
    result = call(*args, "--out", tmp_path, "--methods", "euler", "--json")
    assert result.code == 0  # the baseline is there now, and is not trained again
    assert "training" not in result.err
    assert json.loads(result.out)["grid"]["methods"] == ["euler"]


def test_tradeoff_on_files(run_dir, call, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text("a mat on the cat sat. " * 100)
    result = call(
        "tradeoff", "-m", run_dir / "export", text, "--steps", "2", "-t", 4, "--out", tmp_path,
        "--methods", "analytic", "--metric", "ngram", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert json.loads(result.out)["metric"] == "ngram"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give either --model or --preset"),
        (["-m", "x", "--preset", "small"], "give either --model or --preset"),
        (["-m", "x", "--methods", "analytic,best"], "--methods: expected some of analytic"),
        (["-m", "x", "--steps", "4,many"], "expected numbers with commas"),
        (["-m", "x", "--steps", "0"], "expected positive numbers"),
        (["-m", "x", "--metric", "genppl"], "needs --judge"),
        (["-m", "./none", "--ar", "./neither"], "--ar: nothing at neither"),
    ],
)
def test_tradeoff_refuses(args, message, call):
    result = call("tradeoff", *args)
    assert result.code == 2
    assert message in result.err
