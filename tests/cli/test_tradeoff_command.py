"""`sedd-fast tradeoff`: networks with a text, networks of a size, and what is refused."""

import json
import shutil

import pytest

from sedd_fast.cli import tradeoff_networks
from sedd_fast.evaluate.plots import plot_tradeoff
from sedd_fast.names import DECODING_METHODS, METHODS
from sedd_fast.training.api import train
from sedd_fast.training.config import load_config


def test_tradeoff_trains_its_baseline_and_compares(run_dir, call, tmp_path):
    args = ["tradeoff", "-m", run_dir, "--ar", tmp_path / "ar", "--steps", "2,4"]
    args += ["-n", 6, "--batch-size", 4]
    result = call(*args, "--out", tmp_path)
    assert result.code == 0
    record = json.loads((tmp_path / "tradeoff.json").read_text())
    drawn = {(p["sampler"], p["steps"]) for p in record["points"]}
    usable = set(METHODS) - set(DECODING_METHODS) - set(record["left_out"])
    assert {"analytic", "euler"} <= usable
    assert drawn == {(method, steps) for method in usable for steps in (2, 4)}
    assert [p["sampler"] for p in record["baselines"]] == ["ar, top-p 1", "ar, top-p 0.95"]
    assert set(record["matches"]["ar, top-p 1"]) == usable
    assert record["bound"]["bits_per_token"] > 0
    assert record["baseline_likelihood"]["estimator"].startswith("exact likelihood")
    assert record["real_text"]["js"] < min(p["metrics"]["js"] for p in record["points"])
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    for word in ("rows/sample", "real text", "ar, top-p 0.95", "near to real text"):
        assert word in result.out
    result = call(*args, "--out", tmp_path, "--methods", "euler", "--json")
    assert result.code == 0  # the baseline is there now, and is not trained again
    assert "training" not in result.err
    assert json.loads(result.out)["grid"]["methods"] == ["euler"]


def test_tradeoff_of_the_demo_trains_both_once(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tradeoff_networks, "_BLOCKS", 4)  # of the two bounds: 64 take seconds
    args = ["tradeoff", "--demo", "--minutes", 0.01, "--steps", 2, "-n", 4, "--methods", "hit"]
    result = call(*args)
    assert result.code == 0
    assert result.err.count("training SEDD as sedd-fast demo does, 0.01 minutes") == 1
    assert "training the autoregressive baseline" in result.err
    record = json.loads((tmp_path / "runs" / "demo" / "tradeoff.json").read_text())
    assert (record["model"], record["baseline"]) == ("runs/demo/export", "runs/demo-ar/export")
    for name, fastest in record["as_fast"].items():
        assert name in ("ar, top-p 1", "ar, top-p 0.95")
        assert fastest["hit"] is None or fastest["hit"]["steps"] == 2
    repeated = call(*args, "--json")
    assert repeated.records[0]["points"][0]["metrics"] == record["points"][0]["metrics"]
    assert "training" not in repeated.err


def steps_of(run) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir()]


def test_an_interrupted_baseline_is_resumed(run_dir, call, tmp_path):
    """If its settings are those that it would be trained with; any other is used as it is."""
    run = tmp_path / "ar"
    args = ["tradeoff", "-m", run_dir, "--ar", run, "--steps", 2, "-n", 4, "--methods", "hit"]
    args += ["--out", tmp_path]
    assert call(*args).code == 0
    (whole,) = steps_of(run)
    settings = (run / "config.yaml").read_text()
    shutil.rmtree(run)
    kind = ["model.kind=ar", f"run_dir={run}"]
    train(load_config(None, [run_dir / "config.yaml"], [*kind, "training.n_iters=10"]))
    result = call(*args)
    assert (result.code, steps_of(run)) == (0, ["step-00000010"])
    assert "training" not in result.err
    (run / "config.yaml").write_text(settings)  # as if interrupted after 10 of its steps
    result = call(*args)
    assert result.code == 0
    assert f"resuming the autoregressive baseline in {run}" in " ".join(result.err.split())
    assert whole in steps_of(run)


def test_tradeoff_of_the_demo_leaves_another_run_alone(run_dir, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(run_dir, tmp_path / "runs" / "demo")
    before = sorted(path.name for path in other.iterdir())
    for _ in range(2):  # nothing is left behind that makes it a demo's
        result = call("tradeoff", "--demo", "--minutes", 0.01)
        assert result.code == 2
        assert "runs/demo holds another run than the demo's; move it away" in result.err
    assert sorted(path.name for path in other.iterdir()) == before


def test_tradeoff_of_a_size_knows_time_alone(call, tmp_path, monkeypatch):
    small = ["model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1", "model.length=12"]
    monkeypatch.setattr(
        tradeoff_networks, "load_config", lambda name: load_config("tiny", (), small)
    )
    args = ["--preset", "small", "-n", 1, "--methods", "analytic", "--steps", "1,2"]
    result = call("tradeoff", *args, "--out", tmp_path)
    assert result.code == 0
    record = json.loads((tmp_path / "tradeoff.json").read_text())
    assert (record["metric"], record["length"], record["matches"]) == (None, 12, {})
    assert [point["steps"] for point in record["points"]] == [1, 2]
    assert [point["metrics"] for point in record["points"]] == [{}, {}]
    assert [point["rows"] for point in record["baselines"]] == [12, 12]
    assert "random weights" in result.out
    assert "than ar, top-p 1" in result.out


def test_tradeoff_on_files(run_dir, call, tmp_path, monkeypatch):
    drawn = []

    def watched(*args):
        drawn.append(args)
        return plot_tradeoff(*args)

    monkeypatch.setattr("sedd_fast.evaluate.plots.plot_tradeoff", watched)
    text = tmp_path / "other.txt"
    text.write_text("a mat on the cat sat. " * 100)
    result = call(
        "tradeoff", "-m", run_dir / "export", text, "--steps", "2", "-n", 4, "--out", tmp_path,
        "--methods", "analytic", "--metric", "ngram", "--json",
    )  # fmt: skip
    assert result.code == 0
    record = json.loads(result.out)
    assert record["metric"] == "ngram"
    ((points, _, metric, _, real),) = drawn
    assert (metric, real) == ("ngram", record["real_text"]["ngram"])
    assert [point.metrics["ngram"] for point in points] == [record["points"][0]["metrics"]["ngram"]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give one of --model, --preset and --demo"),
        (["-m", "x", "--preset", "small"], "give one of --model, --preset and --demo"),
        (["--demo", "--preset", "small"], "give one of --model, --preset and --demo"),
        (["--demo", "--ar", "x"], "--demo brings a baseline of its own"),
        (["--preset", "small", "--ar", "x"], "--preset brings a baseline of its own"),
        (["--demo", "--minutes", "0"], "minutes: expected a positive number"),
        (["-m", "x", "--minutes", "3"], "--minutes: only valid with --demo"),
        (["--preset", "small", "a.txt"], "leave out TEXT and --judge"),
        (["--preset", "small", "--judge", "x"], "leave out TEXT and --judge"),
        (["-m", "x", "--methods", ""], "--methods: expected some of analytic"),
        (["-m", "x", "--steps", "4,9999999"], "--steps: expected positive numbers up to 1,000,000"),
        (
            ["-m", "x", "--top-p", "0.9,nan"],
            "--top-p: expected positive numbers up to 1, got '0.9,nan'",
        ),
        (["-m", "x", "--top-p", "1.5"], "--top-p: expected positive numbers up to 1, got '1.5'"),
        (["-m", "x", "--methods", "analytic,best"], "--methods: expected some of analytic"),
        (["-m", "x", "--steps", "4,many"], "--steps: expected numbers with commas"),
        (["-m", "x", "--steps", "0"], "--steps: expected positive numbers"),
        (["-m", "x", "--metric", "genppl"], "needs --judge"),
        (["-m", "none", "--ar", "neither"], "--ar: nothing at neither"),
        (["-m", "./none", "--ar", "neither"], "no directory 'none'"),
    ],
)
def test_tradeoff_refuses(args, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("tradeoff", *args)
    assert result.code == 2
    assert message in result.err
