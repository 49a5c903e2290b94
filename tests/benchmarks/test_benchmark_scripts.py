"""The studies: their commands run, and some figures that docs/ cites have the right order."""

import json
import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.harness.measuring import REGIMES
from benchmarks.studies import evaluation, score_scale

ROOT = Path(__file__).resolve().parents[2]
STUDIES = [path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.py")]
#: Modules of benchmarks/studies that are no commands.
PARTS = ("__init__", "launches", "row_calls", "sass")


def run(module: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a module from the root of the checkout, in the memory regime "memory"."""
    command, given = [sys.executable, "-m", module, *options], os.environ | REGIMES["memory"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=given)


def results(tmp_path, study: str, *options: str) -> tuple[str, dict]:
    """What a study printed, and its JSON."""
    path = tmp_path / "results.json"
    done = run(f"benchmarks.studies.{study}", *options, "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


#: The packages of benchmarks/: each imports itself and those before it.
PACKAGES = ("harness", "contenders", "suites", "studies")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_of_the_benchmarks_run_downward(package):
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    for path in (ROOT / "benchmarks" / package).glob("*.py"):
        imported = re.findall(r"^\s*from benchmarks\.(\w+)", path.read_text(), re.MULTILINE)
        assert set(imported) <= set(allowed), path


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("study", sorted(set(STUDIES) - set(PARTS)))
def test_every_study_explains_itself(study, monkeypatch, capsys):
    """Executed in this process, as ``python -m`` executes it: a new one imports torch first."""
    monkeypatch.setattr(sys, "argv", [study, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.studies.{study}", run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert f"python -m benchmarks.studies.{study}" in capsys.readouterr().out


def test_scale_of_scores(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    options = ["--steps", "3", "--sequences", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["score_scale", *options])
    assert score_scale.main() == 0
    out, record = capsys.readouterr().out, json.loads(path.read_text())
    found = record["found"]
    for name, row in found.items():
        assert name in out
        assert row["least"] <= row["median"] <= row["largest"]
        assert row["exact"] >= row["normalised"] - 1e-6  # by Z - 1 - ln Z at the same noise
    posterior = found["PosteriorSEDD, cross entropy"]
    assert posterior["least"] == pytest.approx(1, abs=1e-5)
    assert posterior["largest"] == pytest.approx(1, abs=1e-5)
    free = found["SEDD, cross entropy"]
    assert max(abs(free["least"] - 1), abs(free["largest"] - 1)) > 1e-4
    assert record["text_bits"] < 3.9  # ln 15 / ln 2


def test_memory_of_an_evaluation(tmp_path):
    options = ("--batch", "2", "--length", "16", "--vocab", "20000")  # 3 MB of log scores
    out, record = results(tmp_path, "evaluation", *options)
    assert "3 MB" in out
    rows = {(row["graph"], row["mode"]): row for row in record["rows"]}
    for graph, mode in (("absorbing", "exact"), ("absorbing", "paper"), ("uniform", "paper")):
        row = rows[graph, mode]
        assert row["apart"] < 1e-4
        if row["scores"] is not None:  # this system tells
            assert row["fused"] < row["scores"] / 3


def test_peaks_are_measured_in_a_process_that_returns_memory_at_once(monkeypatch):
    """The study starts itself again, unless the environment is that of its regime."""

    def started(program: str, command: list[str], environment: dict[str, str]) -> None:
        found.append((program, command, environment))
        raise SystemExit

    found: list[tuple] = []
    monkeypatch.setattr(sys, "argv", ["evaluation", "--length", "8"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "evaluation", "--length", "8"])
    monkeypatch.setattr(evaluation.os, "execve", started)
    monkeypatch.setattr(evaluation, "measure", lambda args: [])
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with pytest.raises(SystemExit):
        evaluation.main()
    ((program, command, environment),) = found
    assert (program, command) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert environment == os.environ | REGIMES["memory"]
    for name, value in REGIMES["memory"].items():
        monkeypatch.setenv(name, value)
    assert evaluation.main() == 0
    assert len(found) == 1


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_overhead_of_a_launch(tmp_path):
    out, record = results(tmp_path, "launch_overhead", "--batches", "1")
    for name, times in record.items():
        assert name in out
        assert times["whole"] > 1
    parts = record["score_entropy"]
    assert sum(time for part, time in parts.items() if part != "whole") == pytest.approx(
        parts["whole"]
    )
    assert parts["operator"] > 1
