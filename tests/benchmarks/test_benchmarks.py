"""The benchmark: measuring, reports, choices of backends, and its command."""

import json
import mmap
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import sedd_fast as sf
from benchmarks import run
from benchmarks.harness import cases, measuring, records
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.studies import choices, largest_batch
from benchmarks.suites import sweep, worker
from benchmarks.suites.end_to_end import Training
from sedd_fast.backends import cpp

V = 11


class FakeMeter:
    """A clock on which every call takes as many milliseconds as it returns."""

    def time(self, call) -> float:
        return float(call())

    def peak_extra(self, call) -> int | None:
        return 7


def test_interleaving_shares_the_budget():
    calls = {"slow": lambda: 900.0, "fast": lambda: 2.0}
    timing = measuring.interleave(FakeMeter(), calls, measuring.Budget(rounds=25, seconds=4.0))
    assert timing["fast"].calls == 25
    assert timing["slow"].calls == 5
    assert timing["slow"].median_ms == 900.0


@pytest.mark.parametrize(("seconds", "timings"), [(0.02, 25), (0.25, 8), (0.9, 5), (1.8, 3)])
def test_slow_calls_are_timed_less_often(seconds, timings):
    assert measuring.Budget(rounds=25, seconds=4.0).timings(seconds, calls=2) == timings
    assert measuring.Budget(rounds=2, seconds=0.1).timings(seconds, calls=2) <= 2


def test_timings_are_spread_over_the_rounds():
    turns = [turn for turn in range(1, 25) if measuring._is_due(turn, 4, 24)]
    assert turns == [6, 12, 18, 24]


def test_cases_measured_together_call_what_they_share_once():
    called: list[str] = []

    def contender(name: str, ms: float) -> cases.Contender:
        return cases.Contender(name, "ours", lambda: called.append(name) or ms)

    shared = contender("eager", 1500.0)
    pair = tuple(
        cases.Case("small", "o", "s", dtype, (shared, contender(dtype, ms)),
                   floor_runs={"network": lambda ms=ms: ms / 2})
        for dtype, ms in (("fp32", 1100.0), ("bf16", 400.0))
    )  # fmt: skip
    timed = records.time_records(FakeMeter(), pair, measuring.Budget(25, 4.0))
    found = [(r["dtype"], r["implementation"], r["median_ms"], r["floor_ms"]) for r in timed]
    assert found == [
        ("fp32", "eager", 1500.0, 550.0), ("fp32", "fp32", 1100.0, 550.0),
        ("bf16", "eager", 1500.0, 200.0), ("bf16", "bf16", 400.0, 200.0),
    ]  # fmt: skip
    assert called.count("eager") == 1 + 3  # a call to warm up, then three that are timed
    called.clear()
    assert [r["extra_bytes"] for r in records.memory_records(FakeMeter(), pair)] == [7] * 4
    assert called.count("eager") == 1


def test_percentiles():
    timing = measuring.summarise([float(n) for n in range(1, 12)])
    assert (timing.p20_ms, timing.median_ms, timing.p80_ms) == (3.0, 6.0, 9.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_memory_sees_what_a_call_frees():
    meter = measuring.CpuMeter()
    if meter.peak_extra(lambda: None) is None:
        pytest.skip("this system cannot reset the high-water mark")
    size = 64 * 2**20

    def call() -> None:  # new pages: torch may have kept some
        with mmap.mmap(-1, size) as memory:
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 1

    peak = meter.peak_extra(call)
    assert 0.95 * size < peak < 1.2 * size


def test_only_the_operations_asked_for(capsys):
    small = BenchmarkConfig(("ops",), positions=4, vocab_size=101, backends=("reference",))
    asked = replace(small, operations=("absorbing loss", "uniform euler step"))
    found = [case.operation for (case,) in worker.all_cases(asked, None)]
    assert found == ["absorbing loss", "uniform euler step"]
    with pytest.raises(SystemExit):
        list(worker.all_cases(replace(small, operations=("uniform step",)), None))
    assert "no 'uniform step'; known are: absorbing analytic step; " in capsys.readouterr().err


def test_a_sweep_covers_its_axes():
    small = BenchmarkConfig(positions=4, vocab_size=101, backends=("reference",))
    swept = list(sweep.sweep_cases(small))
    for suite, axis in (("vocabulary", (32, 128)), ("noised", sweep.FRACTIONS)):
        assert sorted({case.at for case in swept if case.suite == suite}) == sorted(axis)
    assert len({(c.suite, c.operation, c.shape, c.dtype) for c in swept}) == len(swept)
    unread = [c for c in swept if c.at == 0 and c.operation == "absorbing loss"]
    assert [case.floor_bytes for case in unread] == [0]


def test_choices_of_a_sweep():
    def record(vocab: int, backend: str, ms: float) -> dict:
        return {
            "suite": "vocabulary", "operation": "absorbing analytic step", "dtype": "bf16",
            "kind": "ours", "implementation": f"ours, {backend}", "at": vocab,
            "regimes": {"cuda": {"median_ms": ms}},
        }  # fmt: skip

    times = {99: (1.0, 0.98), 399: (1.0, 0.8), 1599: (1.0, 0.7), 6399: (1.0, 1.2)}
    results = [
        record(vocab, backend, ms)
        for vocab, both in times.items()
        for backend, ms in zip(("triton", "cuda"), both, strict=True)
    ]
    found = choices.rows({"environment": {"capability": [9, 0]}, "results": results})
    # From half way between 100 and 400 states to half way between 1,600 and 6,400.
    assert found == [((9, 0), "reverse_step", "absorbing", "bfloat16", 201, 3200, "cuda")]
    with pytest.raises(SystemExit, match="not from a GPU"):
        choices.rows({"environment": {"capability": None}, "results": results})


def test_choices_of_the_head():
    """One measured head stands for all, and the second backend may win."""

    def record(form: str, backend: str, ms: float) -> dict:
        return {
            "suite": "head", "operation": "head, loss + gradients", "dtype": "bf16",
            "kind": "ours", "implementation": f"ours, {backend}, {form}", "at": 8192,
            "regimes": {"cuda": {"median_ms": ms}},
        }  # fmt: skip

    times = {"fused": (2.0, 1.8), "fused, none": (2.0, 1.99), "dense": (9.0, 1.0)}
    results = [
        record(form, backend, ms)
        for form, both in times.items()
        for backend, ms in zip(("triton", "cuda"), both, strict=True)
    ]
    found = choices.rows({"environment": {"capability": [9, 0]}, "results": results})
    op = "linear_score_entropy_with_grad"
    assert found == [((9, 0), op, "absorbing", "bfloat16", 0, None, "cuda")]


@pytest.mark.parametrize("limit", [0, 1, 5, 64, 99, 100, 101])
def test_the_largest_batch_that_fits(limit):
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found, most = largest_batch.largest(fits, most=100), min(limit, 100)
    assert found <= most <= found + found // 16
    assert len(tried) == len(set(tried)) <= 15


def test_a_batch_that_runs_out_of_memory_does_not_fit():
    config = sf.SEDDConfig(vocab_size=V, hidden_size=8, n_blocks=1, n_heads=1, length=4)
    model = sf.SEDD(config)

    def step(run: Training) -> None:
        run.fused()
        run.dense()
        if len(run.x_0) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    fits = largest_batch.fitting(model, 4, "bf16", step)
    assert largest_batch.largest(fits, most=9) == 2


def test_the_largest_batch_is_that_of_sedd_small():
    with torch.device("meta"):
        model = sf.SEDD(largest_batch.network(quick=False))
    assert model.config.length == 1024
    # The network of the paper's small model: 90 million beside the embedding and the head.
    rest = [p.numel() for p in model.blocks.parameters()]
    assert 80e6 < sum(rest) < 110e6
    assert tuple(model.output_layer.linear.weight.shape) == (50258, 768)


def test_the_head_is_timed_on_backends_that_have_one():
    chosen = BenchmarkConfig(backends=("reference", "cuda"), vocab_size=V)
    assert cases.backends(chosen) == ("reference", "cuda")
    assert cases.backends(chosen, "linear_score_entropy") == ("reference",)


@pytest.fixture
def command(monkeypatch, capfd) -> Callable[..., tuple[int | str | None, str, str]]:
    """``command("--quick")``: exit status, stdout and stderr of run.py, called in this process.

    Its workers are processes, unless the test uses ``workers_here``.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(*arguments: str) -> tuple[int | str | None, str, str]:
        try:
            status = run.main(list(arguments))
        except SystemExit as ended:
            status = ended.code
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def workers_here(monkeypatch) -> None:
    """Call the workers in this process: each would import torch, which takes as long as its part.

    The tests of an instruction set and of the softmax heads start them as processes.
    """

    def call(words: list[str], env: dict[str, str], check: bool) -> None:
        assert check
        assert words[:2] == [sys.executable, run.__file__]
        try:
            status = run.main(words[2:])
        except SystemExit as ended:
            status = ended.code
        if status:
            raise subprocess.CalledProcessError(status, words)

    error = subprocess.CalledProcessError
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=call, CalledProcessError=error))


@pytest.mark.usefixtures("workers_here")
def test_command_writes_json_and_picture(tmp_path, command):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    status, out, err = command(
        "--quick", "--no-compile", "--threads", "1", "--vocab", "101",
        "--regimes", "reused,fresh", "--json", str(figures), "--plot", str(picture),
    )  # fmt: skip
    assert status == 0, err
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads(figures.read_text())
    assert written["environment"]["torch"] == torch.__version__
    assert {r["suite"] for r in written["results"]} == {"ops", "train", "sample"}
    for row in written["results"]:
        assert set(row["regimes"]) == set(measuring.regimes("cpu"))
        for times in row["regimes"].values():
            assert 0 < times["p20_ms"] <= times["median_ms"] <= times["p80_ms"]
            assert times["over_floor"] > 0
        assert row["implementation"] in out
    check_sets(written, [sf.info().instruction_set])


def check_sets(written: dict, names: list[str | None]) -> None:
    """Every row names its instruction set; ours have cycles where the clock is known."""
    sets = written["environment"]["instruction_sets"]
    assert [about["name"] for about in sets] == names
    assert {row["instruction_set"] for row in written["results"]} == set(names)
    clocks = {about["name"]: about["clock_ghz"] for about in sets}
    for row in written["results"]:
        known = row["kind"] == "ours" and row["touched"] and clocks[row["instruction_set"]]
        for times in row["regimes"].values():
            assert (times["cycles"] is not None) == bool(known)


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels")
def test_command_measures_an_instruction_set(tmp_path, command):
    figures = tmp_path / "figures.json"
    status, out, err = command(
        "--quick", "--no-compile", "--threads", "1", "--vocab", "101", "--positions", "4",
        "--isa", "baseline", "--regimes", "fresh", "--json", str(figures),
    )  # fmt: skip
    assert status == 0, err
    written = json.loads(figures.read_text())
    assert {row["suite"] for row in written["results"]} == {"ops"}
    check_sets(written, ["baseline"])
    (about,) = written["environment"]["instruction_sets"]
    on_x86 = platform.machine() in ("x86_64", "AMD64")
    assert about["torch_uses"]["eager"] == "DEFAULT" or not on_x86
    assert "fp32, baseline, memory fresh" in out or ", baseline\n" in out


def test_every_instruction_set_has_its_charts(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.harness import plotting

    drawn = {}
    monkeypatch.setattr(
        plotting, "draw_set", lambda part, path: drawn.update({path.name: part["results"]})
    )
    sets = [{"name": name} for name in ("avx2", "baseline")]
    rows = [{"instruction_set": about["name"]} for about in sets]
    whole = {"environment": {"instruction_sets": sets}, "results": rows}
    plotting.draw(whole, tmp_path / "a.png")
    assert drawn == {"a-avx2.png": rows[:1], "a-baseline.png": rows[1:]}
    plotting.draw(whole | {"environment": {"instruction_sets": sets[:1]}}, tmp_path / "b.png")
    assert drawn["b.png"] == rows[:1]


@pytest.mark.usefixtures("workers_here")
def test_command_sweeps_into_two_pictures(tmp_path, command):
    pytest.importorskip("matplotlib")
    status, _, err = command(
        "--quick", "--suite", "sweep", "--threads", "1", "--backend", "reference",
        "--regimes", "reused", "--positions", "4", "--vocab", "101",
        "--operations", "absorbing loss; uniform euler step", "--plot", str(tmp_path / "s.png"),
    )  # fmt: skip
    assert status == 0, err
    for name in ("s-vocabulary.png", "s-noised.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--suite", "everything"], "--suite"),
        (["--dtype", "int8"], "int8"),
        (["--masked", "0"], "--masked"),
        (["--positions", "none"], "--positions"),
        (["--reference", "/nowhere"], "graph_lib.py"),
        (["--json", "/nowhere/at/all.json"], "--json"),
        (["--backend", "abacus"], "abacus"),
        (["--isa", "avx3"], "expected some of avx512, avx2, baseline, got 'avx3'"),
        (["--isa", "avx2", "--device", "cuda"], "for the CPU"),
        (["--regimes", "memory"], "add reused or fresh"),
        (["--head-positions", "256,none"], "--head-positions"),
    ],
)
@pytest.mark.usefixtures("workers_here")
def test_wrong_option_is_one_line(arguments, named, command):
    status, _, err = command(*arguments)
    assert status == 2
    assert named in err.splitlines()[-1]
    assert "Traceback" not in err
