"""The scripts of ``make gpu`` that tune kernels and read counters, as far as no GPU is needed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks.harness import gpu_summary
from benchmarks.harness.command import ROOT
from benchmarks.studies import counters, head_blocks, row_settings

CSV = """==PROF== Connected to process 7
"ID","Kernel Name","Grid Size","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__warps_active.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_not_selected_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"smsp__issue_active.avg.pct_of_peak_sustained_active"
"","","","%","ns","register/thread","%","inst","inst","inst","%"
"0","_score_entropy","(8192, 1, 1)","87.50","123,456","64","61.2","8.25","9.0","1.5","41.0"
"1","_score_entropy","(8192, 1, 1)","90.00","200,000","72","50.0","7.00","0.5","2.5","n/a"
"""


def test_counters_are_read_from_the_raw_page():
    rows = counters.parsed(CSV)
    names = list(counters.names("triton", rows))
    assert names[0] == "triton absorbing loss, _score_entropy"
    assert names[1] == "triton absorbing gradient, _score_entropy"
    first, second = (counters.record_of(n, row) for n, row in zip(names, rows, strict=True))
    assert first["microseconds"] == pytest.approx(123.456)
    assert list(first["stalls"]) == ["long_scoreboard", "wait"]
    assert "88 % DRAM; 41 % issue; 123 us; 64 registers" in counters.line_of(first)
    assert second["issue_percent"] is None
    assert "? % issue" in counters.line_of(second)
    assert counters.parsed("==ERROR== no permission") == []


def test_without_the_profiler_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(counters.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(counters, "find_ncu", lambda: None)
    monkeypatch.setattr(sys, "argv", ["counters.py", "--json", str(tmp_path / "c.json")])
    assert counters.main() == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert "ncu" in json.loads((tmp_path / "c.json").read_text())["lines"][0]


def test_a_profiler_that_reads_nothing_is_a_failure(tmp_path, monkeypatch):
    program = tmp_path / "ncu"
    program.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM'\nexit 1\n")
    program.chmod(0o755)
    assert counters.measure(str(program), tmp_path / "c.json") == 1
    assert "ERR_NVGPUCTRPERM" in json.loads((tmp_path / "c.json").read_text())["lines"][0]


def timed(case: str, kind: list, **ms: float) -> dict:
    found = [{"settings": name, "ms": value} for name, value in ms.items()]
    return {"case": case, "kind": kind, "small": False, "floor_ms": 1.0, "candidates": found}


def test_a_row_of_the_table_is_the_best_for_all_cases_of_its_kind():
    cases = [
        timed("absorbing step", ["reverse_step", 2], A=2.0, B=1.5, C=1.9),
        timed("uniform step", ["reverse_step", 2], A=2.0, B=4.0, C=2.1),
        timed("loss", ["loss", 2], A=1.25),
    ]
    steps = "2.000 ms as it is, 1.900 (0.53 of copy); 2.000 ms as it is, 2.100 (0.48 of copy)"
    assert list(row_settings.table_rows(cases)) == [
        f'    "reverse_step": {{2: C}},  # {steps}',
        '    "loss": {2: A},  # 1.250 ms as it is, 1.250 (0.80 of copy)',
    ]
    line = row_settings.case_line(cases[0])
    assert line == "absorbing step: 2.000 ms as it is, 1.500 (0.67 of copy) with B"


def test_the_summary_shows_the_settings_of_every_kind():
    kinds = {(case.form, case.graph, case.dtype, case.vocab) for case in row_settings.all_calls()}
    assert len(kinds) <= gpu_summary.FIGURES


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_every_call_that_is_timed_is_launched_with_every_candidate():
    """In a process without Triton's interpreter, on tensors without memory; nothing is compiled."""
    code = """
from benchmarks.studies import row_settings
from triton.runtime.jit import JITFunction
row_settings.only_compile(90)
launched = []
JITFunction._do_compile = lambda this, key, *rest: launched.append((this.__name__, str(key)))
for case in row_settings.all_calls():
    kind = row_settings.compile_one(case, None)
    found = row_settings.candidates(case, kind)
    assert len(found) >= 6, (case, found)
    for candidate in found:
        row_settings.compile_one(case, candidate)
print(len(set(launched)))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    large = [case for case in row_settings.all_calls() if case.vocab == row_settings.LARGE]
    assert int(done.stdout) >= 6 * len(large)


def test_the_head_runs_at_every_workspace(tmp_path, monkeypatch):
    file = tmp_path / "blocks.json"
    command = ["head_blocks", "--device", "cpu", "--quick", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    assert head_blocks.main() == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["call"] for row in rows} == {"loss + gradients", "step"}
    assert all(row["ms"] > 0 for row in rows)
    assert {row["workspace_mib"] for row in rows} == {None, 1}
