"""``make gpu``: its steps and their limits. What they find only a GPU can say."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import pytest
import torch
from benchmark_modules import cases, measuring, on_gpu, run, worker


def test_steps_are_taken_in_their_own_order():
    assert on_gpu.options([]).only == tuple(on_gpu.STEPS)
    assert on_gpu.options(["--only", "sweep,build"]).only == ("build", "sweep")
    with pytest.raises(argparse.ArgumentTypeError, match="'tset'"):
        on_gpu._steps("build,tset")


@pytest.mark.parametrize(
    ("failing", "taken", "status"),
    [("tests", ["build", "tests", "ops"], 3), ("build", ["build"], 3), ("", None, 0)],
)
def test_a_step_that_fails_stops_no_other_but_the_build(
    monkeypatch, tmp_path, failing, taken, status
):
    seen = []
    for name, value in (("is_available", True), ("get_device_name", "NVIDIA H200")):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(on_gpu, "refusal", lambda steps: None)
    monkeypatch.setattr(
        on_gpu, "take", lambda step, *_: seen.append(step) or (3 if step == failing else 0)
    )
    results = str(tmp_path / "new")
    assert on_gpu.main(["--only", "build,tests,ops", "--results", results]) == status
    assert seen == (taken or ["build", "tests", "ops"])
    assert (tmp_path / "new").is_dir()


def test_every_command_is_one_that_its_program_takes(tmp_path):
    for step in on_gpu.SUITES:
        first, *_ = on_gpu.commands_of(step, tmp_path / "day-gpu")
        args = run.options(list(first[1:]))
        assert args.device == "cuda"
        assert args.json == f"{tmp_path}/day-gpu-{step}.json"


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_a_command_that_takes_too_long_is_stopped_with_what_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(on_gpu, "GRACE", 0.5)
    alive = tmp_path / "alive"
    write = f"open({str(alive)!r}, 'a').write('x')"
    child = f"import time\nfor _ in range(300): {write}; time.sleep(.1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    assert on_gpu.run(("-c", parent), {}, started + 3) == 124
    assert time.monotonic() - started < 10
    size = alive.stat().st_size
    assert size > 0
    time.sleep(0.5)
    assert alive.stat().st_size == size
    assert on_gpu.run(("-c", "raise SystemExit(5)"), {}, time.monotonic() + 60) == 5
    assert on_gpu.run(("-c", ""), {}, time.monotonic()) == 124


def test_a_contender_that_fails_is_left_out_and_named(capsys):
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand much more")

    both = (cases.Contender("eager", "eager", fails), cases.Contender("ours", "ours", lambda: 1.0))
    remarks: list[str] = []
    left = worker.able(cases.Case("ops", "loss", "2 x 3", "bf16", both), remarks)
    assert [contender.name for contender in left.contenders] == ["ours"]
    assert remarks == [
        "eager is left out of loss (bf16, 2 x 3): OutOfMemoryError: CUDA out of memory"
    ]


def test_a_gpu_run_that_is_cut_short_leaves_what_it_had_measured(monkeypatch, tmp_path):
    def measure(args: argparse.Namespace):
        records: list[dict] = []
        for operation in ("loss", "step"):
            times = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "floor_ms"), 1.0)
            records.append(
                times
                | {"suite": "ops", "operation": operation, "shape": "2", "dtype": "bf16"}
                | {"implementation": "ours", "kind": "ours", "calls": 1, "at": None}
                | {"floor_bytes": 8, "tensor_bytes": None, "yardsticks_ms": {}}
            )
            yield {"environment": {}, "remarks": [], "records": records}
        raise KeyboardInterrupt

    figures, part = tmp_path / "figures.json", tmp_path / "part.json"
    monkeypatch.setattr(worker, "measure", measure)
    monkeypatch.setitem(sys.modules, "worker", worker)
    argv = ["--device", "cuda", "--json", str(figures)]
    argv += ["--worker", "cuda", "--result", str(part)]
    with pytest.raises(KeyboardInterrupt):
        run.main(argv)
    written = json.loads(figures.read_text())
    assert [row["operation"] for row in written["results"]] == ["loss", "step"]
    assert written["environment"]["command"] == f"benchmarks/run.py --device cuda --json {figures}"
    assert len(json.loads(part.read_text())["records"]) == 2


def test_a_call_is_queued_while_the_gpu_is_busy(monkeypatch):
    """What is between the events is the call alone; before them the spin, and then the eviction."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            seen.append("event")

        def synchronize(self) -> None:
            seen.append("wait")

        def elapsed_time(self, end: object) -> float:
            return 0.25

    class Evictor:
        def sum(self) -> None:
            seen.append("evict")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seen.append("spin"), raising=False)
    meter = object.__new__(measuring.CudaMeter)
    meter._evictor = Evictor()
    assert meter.time(lambda: seen.append("call")) == 0.25
    assert seen == ["spin", "evict", "event", "call", "event", "wait"]
