"""``make gpu``: its steps and their limits. Their results can be tested on a GPU only."""

import argparse
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import on_gpu, run
from benchmarks.harness import cases, gpu_results, gpu_steps, gpu_summary, measuring, records
from benchmarks.harness.merging import SIZES
from benchmarks.suites import worker

PLANS = gpu_steps.PLANS
posix = pytest.mark.skipif(os.name != "posix", reason="process groups, named pipes")


def test_plans_and_steps_keep_their_own_order(capsys):
    assert on_gpu.options([]).only == gpu_steps.PLANS["all"]
    assert on_gpu.options(["--only", "sweep,build"]).only == ("build", "sweep")
    both = on_gpu.options(["--plan", "tune,first", "--commit", "0123abc"])
    assert both.only == gpu_steps.PLANS["first"] + gpu_steps.PLANS["tune"]
    assert both.commit == "0123abc"
    for option, value, message in (
        ("--only", "build,tset", "got 'tset'"),
        ("--plan", "second", "expected some of first, tune, compare, all, got 'second'"),
    ):
        with pytest.raises(SystemExit):
            on_gpu.options([option, value])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--minutes", "--patience"])
@pytest.mark.parametrize("value", ["nan", "0", "-1", "many"])
def test_a_limit_is_a_number_above_0(option, value, capsys):
    with pytest.raises(SystemExit):
        on_gpu.options([option, value])
    assert option in capsys.readouterr().err


def test_a_fresh_machine_builds_first(monkeypatch, tmp_path):
    """Also where the checkout itself has the metadata that an earlier build left in it."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for folder in (checkout, site):
        (folder / "sedd_fast-1.dist-info").mkdir(parents=True)
        (folder / "sedd_fast-1.dist-info" / "METADATA").write_text("Name: sedd_fast\nVersion: 1\n")
    monkeypatch.setattr(on_gpu, "ROOT", checkout)
    monkeypatch.setattr(sys, "path", [str(checkout)])
    assert on_gpu.with_build(("settings", "head")) == ("build", "settings", "head")
    assert on_gpu.with_build(PLANS["first"]) == PLANS["first"]
    sys.path.append(str(site))
    assert on_gpu.with_build(("settings",)) == ("settings",)


def test_the_plans_fit_their_minutes():
    seconds = {name: [gpu_steps.STEPS[s].seconds for s in of] for name, of in PLANS.items()}
    assert seconds["first"] == [60, 150, 120]
    assert sum(seconds["tune"]) < 600
    assert {step for of in PLANS.values() for step in of} == set(gpu_steps.STEPS)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H200, as far as on_gpu.py asks."""
    for name, value in (("is_available", True), ("get_device_name", "NVIDIA H200")):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(on_gpu, "refusal", lambda steps: None)
    monkeypatch.setattr(on_gpu, "probe", lambda: None)


@pytest.mark.parametrize(
    ("failing", "taken", "status"),
    [("smoke", ["build", "smoke", "ops"], 11), ("build", ["build"], 10), ("", None, 0)],
)
def test_a_step_that_fails_stops_no_other_but_the_build(
    gpu, monkeypatch, tmp_path, capsys, failing, taken, status
):
    seen = []
    monkeypatch.setattr(
        on_gpu, "take", lambda step, *_: seen.append(step) or (3 if step == failing else 0)
    )
    results = str(tmp_path / "new")
    assert on_gpu.main(["--plan", "first", "--results", results, "--commit", "c0ffee"]) == status
    assert seen == (taken or ["build", "smoke", "ops"])
    names = [path.name for path in (tmp_path / "new").iterdir()]
    assert len(names) <= 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    assert any(name.endswith("h200-c0ffee-figures.json") for name in names)
    printed = capsys.readouterr().out
    assert "NVIDIA H200, commit c0ffee" in printed
    assert not failing or f"{failing:10} FAILED (3)" in printed


def machine(tmp_path) -> gpu_steps.Machine:
    return gpu_steps.Machine(
        "90", lambda n: tmp_path / f"{n}.json", lambda n: tmp_path / f"{n}.xml"
    )


def test_every_command_is_one_that_its_program_takes(tmp_path):
    measured, studies = 0, set()
    for step in gpu_steps.STEPS.values():
        first, *_ = step.commands(machine(tmp_path))
        if first.words[0].endswith("run.py"):
            args = run.options(list(first.words[1:]))
            assert (args.device, args.json.is_relative_to(tmp_path)) == ("cuda", True)
            measured += 1
        for words in (command.words for command in step.commands(machine(tmp_path))):
            if words[1].startswith("benchmarks.studies."):
                source = gpu_steps.ROOT / f"{words[1].replace('.', '/')}.py"
                takes = ('"--json"', "gpu_parser(")
                assert "--json" not in words or any(t in source.read_text() for t in takes)
                studies.add(source.stem)
    few = "choices counters generation gpu_profile head_blocks largest_batch row_settings"
    assert (measured, studies) == (9, set(few.split()))


def test_the_build_leaves_the_cpu_module_out(tmp_path, monkeypatch):
    monkeypatch.delenv("SEDD_FAST_CUDA_ARCHS", raising=False)
    install, *_ = gpu_steps.STEPS["build"].commands(machine(tmp_path))
    assert install.environment["SEDD_FAST_CUDA_ARCHS"] == "90"
    assert install.environment["SEDD_FAST_CPU"] == "0"
    monkeypatch.setenv("SEDD_FAST_CUDA_ARCHS", "90a")
    install, *_ = gpu_steps.STEPS["build"].commands(machine(tmp_path))
    assert install.environment["SEDD_FAST_CUDA_ARCHS"] == "90a"


REPORT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_laws" name="test_a[1]"/>
<testcase classname="tests.ops.test_laws" name="test_b[1]"><failure message="AssertionError: 3 of 8
off at 0.25">tests/ops/op_cases.py:272: in assert_near
    raise AssertionError</failure></testcase>
<testcase classname="tests.ops.test_laws" name="test_b[2]"><failure message="AssertionError: 5 of 8
off at 0.75">tests/ops/op_cases.py:272: in assert_near</failure></testcase>
<testcase classname="tests.ops.test_laws" name="test_e[2]"><failure message="AssertionError: 1 of 8
off at 0.5">tests/ops/op_cases.py:272: in assert_near</failure></testcase>
<testcase classname="tests.ops.test_laws" name="test_c"><skipped message="no"/></testcase>
<testcase classname="tests.ops.test_laws" name="test_d"><error message="worker 'gw3' crashed"/>
</testcase></testsuite></testsuites>"""


def test_failures_are_listed_once_and_figures_outlive_their_step(tmp_path, capsys):
    results = gpu_results.Results(tmp_path, "day-h200-abc", "abc", "NVIDIA H200")
    results.junit("smoke").write_text(REPORT)
    results.finish("smoke", 1, 12.0)
    part = results.part("settings", "row_settings")
    part.write_text(json.dumps({"lines": ["loss: 0.3 ms"], "cases": []}))
    results.finish("settings", 124, 150.0)
    assert not part.exists()
    record = json.loads((tmp_path / "day-h200-abc-figures.json").read_text())
    assert record["steps"]["settings"]["row_settings"]["lines"] == ["loss: 0.3 ms"]
    tests = record["steps"]["smoke"]["tests"]
    assert [tests[key] for key in ("passed", "failed", "skipped")] == [1, 4, 1]
    text = results.summary()
    assert "3 x test_laws::test_b[1]: AssertionError: 3 of 8" in text
    assert "also in test_e" in text
    assert "op_cases.py:272" in text
    assert "1 passed, 4 failed, 1 skipped" in text
    assert "worker 'gw3' crashed" in text
    assert "settings   CUT OFF" in text
    assert "loss: 0.3 ms" in text
    assert results.exit_status() == 10 + list(gpu_steps.STEPS).index("smoke")


def test_the_summary_says_why_a_step_failed(tmp_path, capsys):
    results = gpu_results.Results(tmp_path, "day-h200-abc", "abc", "NVIDIA H200")
    trace = "Traceback:", "torch.OutOfMemoryError: of 80 GB", "", "During another:", "KeyError: 'x'"
    for line in ("kernel.cu(12): error: no such name", "", *trace, "ended"):
        results.say(line)
    results.finish("ops", 1, 3.0)
    results.say("KeyError: 'of another step'")
    results.finish("settings", 0, 3.0)
    results.say("bash: no python")
    results.finish("head", 127, 3.0)
    lines = results.summary().splitlines()
    assert lines[2].strip() == "kernel.cu(12): error: no such name | KeyError: 'x'"
    assert lines[5].strip() == "bash: no python"
    assert len(lines) == 6


def test_figures_of_a_case_are_one_line():
    def row(name: str, **times: object) -> dict:
        record = {"suite": "ops", "operation": "absorbing loss", "shape": "2", "dtype": "bf16"}
        return record | {"implementation": name, "regimes": {"cuda": times}}

    rows = [
        row("eager, original formulas", median_ms=4.0, floor_ms=0.25),
        row("ours, triton", median_ms=0.5, floor_ms=0.25, replay={"median_ms": 0.4}, wall=None),
    ]
    lines = list(gpu_summary.lines_of({"results": rows, "remarks": ["x is left out"]}))
    assert lines == [
        "absorbing loss, bf16: floor 0.25 ms; eager 4 (0.06); triton 0.5 (0.50), replay 0.4",
        "note: x is left out",
    ]


def test_the_summary_stays_short():
    failures = [{"count": 1, "tests": {"t": "t" * 90}, "said": "x" * 900}] * 60
    tests = {"passed": 0, "failed": 60, "skipped": 0, "failures": failures}
    steps = {
        "smoke": {"status": 1, "seconds": 1.0, "tests": tests},
        "settings": {"status": 0, "seconds": 1.0, "part": {"lines": ["y" * 300] * 200}},
    }
    text = gpu_summary.summary({"gpu": "G", "commit": "c", "steps": steps})
    assert len(text) <= gpu_summary.LONGEST
    assert "the rest is in the results" in text
    assert "more in the results" in text or text.count("rest is in") == 2


def command(code: str) -> gpu_steps.Command:
    return gpu_steps.Command(("-c", code))


class Descendant:
    """A process that a command starts; a named pipe shows when it begins and when it ends."""

    def __init__(self, folder: Path, first: str = "") -> None:
        path = folder / "pipe"
        os.mkfifo(path)
        self._pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._pid = 0
        self.code = (
            f"import os, signal\n{first}\npipe = open({str(path)!r}, 'w')\n"
            "print(os.getpid(), file=pipe, flush=True)\n"
            "try: print('begun', flush=True)\nexcept BrokenPipeError: pass\n"
            "while True: signal.pause()"
        )

    def wait_until_begun(self) -> None:
        assert select.select([self._pipe], [], [], 120)[0], "it did not begin"
        self._pid = int(os.read(self._pipe, 99))

    def has_ended(self) -> bool:
        """Whether it ends: the system closes the pipe of a killed process a moment later."""
        ended = bool(select.select([self._pipe], [], [], 60)[0]) and not os.read(self._pipe, 99)
        os.close(self._pipe)
        if not ended:
            os.kill(self._pid, signal.SIGKILL)
        return ended


@pytest.fixture
def give_up(monkeypatch) -> Callable[[Descendant], list[float | None]]:
    """From now on the first limit of a command passes as soon as its descendant has begun."""

    def install(descendant: Descendant) -> list[float | None]:
        wait, limits = subprocess.Popen.wait, []

        def wait_or_give_up(process: subprocess.Popen, timeout: float | None = None) -> int:
            limits.append(timeout)
            if len(limits) > 1:
                return wait(process, timeout)
            descendant.wait_until_begun()
            raise subprocess.TimeoutExpired(process.args, timeout)

        monkeypatch.setattr(subprocess.Popen, "wait", wait_or_give_up)
        return limits

    return install


@pytest.fixture
def clock(monkeypatch) -> float:
    """The time that stands still while a command runs."""
    monkeypatch.setattr(on_gpu, "GRACE", 3.0)
    monkeypatch.setattr(on_gpu, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    return 1000.0


@posix
def test_a_command_that_takes_too_long_is_stopped_with_what_it_started(clock, give_up, tmp_path):
    child = Descendant(tmp_path)
    start = f"subprocess.run([sys.executable, '-c', {child.code!r}])"
    parent = f"import subprocess, sys; print('begun'); {start}"
    said: list[str] = []
    limits = give_up(child)
    assert on_gpu.run(command(parent), clock + 100, said.append) == 124
    assert limits[0] == 97  # 3 s are kept for the end of the process
    assert "begun" in said
    assert child.has_ended()


@posix
def test_the_status_of_a_command(clock, tmp_path):
    said: list[str] = []
    assert on_gpu.run(command("raise SystemExit(5)"), clock + 600) == 5
    assert on_gpu.run(command(""), clock) == 124
    unread = gpu_steps.Command(("-c", "raise SystemExit(5)"), reads=tmp_path / "missing.json")
    assert on_gpu.run(unread, clock + 600, said.append) == 0
    assert "no missing.json" in said[-1]


@posix
@pytest.mark.parametrize("gives_up", [True, False])
def test_what_ignores_the_interrupt_of_its_parent_is_killed(gives_up, clock, give_up, tmp_path):
    """A worker of the tests may hang in a kernel; its parent is stopped, or ends by itself."""
    child = Descendant(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    start = (
        "import signal, subprocess, sys\n"
        f"words = [sys.executable, '-c', {child.code!r}]\n"
        "child = subprocess.Popen(words, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
    )
    if gives_up:
        give_up(child)
        assert on_gpu.run(command(start + "signal.pause()"), clock + 600) == 124
    else:
        assert on_gpu.run(command(start), clock + 600) == 0
        child.wait_until_begun()
    assert child.has_ended()


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(on_gpu, "refusal", lambda steps: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    (tmp_path / "file").touch()
    arguments = ["--only", "settings", "--results", str(tmp_path / "file" / "results")]
    assert on_gpu.main(arguments) == 2
    assert "--results" in capsys.readouterr().err


def test_a_contender_that_fails_is_left_out_and_named(capsys):
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand much more")

    both = (cases.Contender("eager", "eager", fails), cases.Contender("ours", "ours", lambda: 1.0))
    remarks: list[str] = []
    left = records.able(cases.Case("ops", "loss", "2 x 3", "bf16", both), remarks, set())
    assert [contender.name for contender in left.contenders] == ["ours"]
    assert remarks == [
        "eager is left out of loss (bf16, 2 x 3): OutOfMemoryError: CUDA out of memory"
    ]


def test_a_gpu_run_that_is_cut_short_leaves_what_it_had_measured(monkeypatch, tmp_path):
    def measure(args: argparse.Namespace):
        made: list[dict] = []
        for operation in ("loss", "step"):
            times = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "floor_ms"), 1.0)
            made.append(
                times
                | {"suite": "ops", "operation": operation, "shape": "2", "dtype": "bf16"}
                | {"implementation": "ours", "kind": "ours", "calls": 1, "yardsticks_ms": {}}
                | (dict.fromkeys(SIZES) | {"floor_bytes": 8})
            )
            about = {"regime": "cuda", "instruction_set": None, "torch_uses": None}
            yield about | {"environment": {}, "remarks": [], "records": made}
        raise KeyboardInterrupt

    figures, part = tmp_path / "figures.json", tmp_path / "part.json"
    monkeypatch.setattr(worker, "measure", measure)
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
