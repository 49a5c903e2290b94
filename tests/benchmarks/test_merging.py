"""The results of a benchmark run: floors, cycles per element, ratios within one process."""

import io

import pytest

from benchmarks.harness import cases, clock, measuring, merging, records, report, tables
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.suites import ops, sums
from sedd_fast.backends import cpp


class FakeMeter:
    """A clock on which every call takes as many milliseconds as it returns."""

    def time(self, call) -> float:
        return float(call())

    def peak_extra(self, call) -> int | None:
        return None


def record(kind: str, ms: float, **more) -> dict:
    """What a process writes of one contender."""
    times = {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "calls": 1, "floor_ms": 2.0}
    keys = {"suite": "ops", "operation": "o", "shape": "s", "dtype": "fp32"}
    sizes = dict.fromkeys(merging.SIZES) | {"floor_bytes": 8, "tensor_bytes": 8, "touched": 100}
    yardsticks = {"yardsticks_ms": {"copy": ms, "read": ms, "clone": ms}}
    found = keys | {"implementation": kind, "kind": kind} | times | sizes | yardsticks
    return found | {"clock_hz": 2e9} | more


def part(regime: str, name: str | None, found: list[dict]) -> dict:
    """What a process writes."""
    about = {"regime": regime, "instruction_set": name, "torch_uses": {"eager": name}}
    return about | {"environment": {"threads": 4}, "remarks": ["same"], "records": found}


def test_ratios_stay_within_a_process():
    kinds = ("eager", "compile", "rewritten", "ours")
    speeds = {
        ("reused", "avx2"): (80, 40, 20, 4), ("fresh", "avx2"): (90, 60, 50, 10),
        ("reused", "baseline"): (160, 240, 320, 80), ("fresh", "baseline"): (1, 1, 1, 1),
    }  # fmt: skip
    parts = [
        part(*of, [record(k, ms) for k, ms in zip(kinds, found, strict=True)])
        for of, found in speeds.items()
    ]
    peaks = [{k: v for k, v in record("ours", 0).items() if k != "median_ms"}]
    parts.append(part("memory", "avx2", [peaks[0] | {"extra_bytes": 16}]))
    merged = merging.merge(parts, "run.py")
    rows = {(r["instruction_set"], r["kind"]): r for r in merged["results"]}
    assert len(rows) == 8
    ours = rows["avx2", "ours"]["regimes"]
    assert ours["reused"]["over_floor"] == 2
    assert ours["reused"]["faster_than_eager"] == 20
    assert ours["reused"]["faster_than_compile"] == 10
    assert ours["reused"]["faster_than_best_compile"] == 5
    assert ours["fresh"]["faster_than_compile"] == 6
    assert rows["baseline", "ours"]["regimes"]["reused"]["faster_than_compile"] == 3
    assert merged["remarks"] == ["same"]
    assert [rows[name, "ours"]["extra_tensors"] for name in ("avx2", "baseline")] == [2, 2]
    sets = merged["environment"]["instruction_sets"]
    assert [about["name"] for about in sets] == ["avx2", "baseline"]
    assert sets[0]["bandwidth"]["fresh"]["allocating"] == 1
    assert sets[0]["torch_uses"] == {"eager": "avx2"}
    assert sets[0]["clock_ghz"] == 2


def test_cycles_per_element():
    """3 ms of 4 threads at 2 GHz are 24 million cycles."""
    assert clock.cycles_per_element(3.0, 4, 2e9, 6_000_000) == pytest.approx(4)
    assert clock.cycles_per_element(3.0, 4, None, 6_000_000) is None  # no C++ module
    assert clock.cycles_per_element(3.0, 4, 2e9, 0) is None  # nothing is read
    assert clock.cycles_per_element(3.0, 4, 2e9, None) is None
    found = [record("eager", 8.0), record("ours", 3.0, touched=6_000_000)]
    eager, ours = merging.merge([part("fresh", "avx2", found)], "run.py")["results"]
    assert ours["regimes"]["fresh"]["cycles"] == pytest.approx(4)
    assert eager["regimes"]["fresh"]["cycles"] is None
    unknown = [part("fresh", None, [record("ours", 3.0, clock_hz=None)])]
    (row,) = merging.merge(unknown, "run.py")["results"]
    assert row["regimes"]["fresh"]["cycles"] is None


@pytest.mark.parametrize(("graph", "rows"), [("absorbing", 4), ("uniform", 8)])
def test_floors_of_a_loss_with_gradient(graph, rows):
    """8 rows of scores, half of them noised; the copy reads and writes all 8 in 16 ms."""
    config = BenchmarkConfig(positions=8, vocab_size=11, masked=0.5, compile=False,
                             backends=("reference",))  # fmt: skip
    found = {
        case.operation: case for case in (*ops.op_cases(config, None), *sums.sums_cases(config))
    }
    case = found[f"{graph} loss + gradient"]
    row = case.tensor[0, 0].numel() * 4
    assert case.touched * 4 == rows * row
    once, twice = (rows + 8) * row, (2 * rows + 8) * row
    by_name = {c.name: records.fewest_bytes(case, c) for c in case.contenders}
    assert by_name == {
        "eager, original formulas": once,
        "ours, reference, autograd": twice,
        "ours, reference, one pass": once,
    }
    floors = [records.floor_of(case, c, {"copy": 16.0}) for c in case.contenders]
    assert floors == [rows + 8, 2 * rows + 8, rows + 8]
    for name in {
        "absorbing": ("cross entropy",),
        "uniform": ("squared error", "sum of logarithms"),
    }[graph]:
        case = found[f"{graph} {name} + gradient"]
        assert [records.fewest_bytes(case, c) for c in case.contenders] == [once, twice]
        assert case.touched * 4 == rows * row
    assert found[f"{graph} analytic step"].floor_bytes == rows * row
    assert found[f"{graph} sample_transition"].touched is None


def test_a_floor_comes_from_the_copy_of_the_same_rounds():
    config = BenchmarkConfig(positions=8, vocab_size=11, compile=False, backends=("reference",))
    case = next(iter(ops.op_cases(config, None)))
    timed = records.time_records(measuring.CpuMeter(evict=False), (case,), measuring.Budget(3, 0.1))
    copied = 2 * case.tensor.numel() * 4
    for found in timed:
        share = case.floor_bytes / copied
        assert found["floor_ms"] == pytest.approx(share * found["yardsticks_ms"]["copy"])


def test_a_slow_call_that_has_been_made_is_not_made_again_before_it_is_timed():
    calls = {"slow": 0, "fast": 0}

    def call(name: str, ms: float) -> float:
        calls[name] += 1
        return ms

    runs = {"slow": lambda: call("slow", 1500.0), "fast": lambda: call("fast", 900.0)}
    found = measuring.interleave(FakeMeter(), runs, measuring.Budget(25, 4.0), warm={"slow"})
    assert calls == {"slow": 3, "fast": 1 + 5}
    assert found["slow"].calls == 3


def test_a_first_call_of_over_a_second_warms_up_unless_it_compiled(monkeypatch):
    clock_s, runs = [0.0], {}

    def takes(seconds: float) -> None:
        clock_s[0] += seconds

    monkeypatch.setattr(records.time, "monotonic", lambda: clock_s[0])
    for name, seconds in (("eager", 1.5), ("compile", 20.0), ("ours", 0.5)):
        runs[name] = lambda seconds=seconds: takes(seconds)
    contenders = tuple(cases.Contender(name, name, call) for name, call in runs.items())
    warm: set = set()
    records.able(cases.Case("head", "o", "s", "fp32", contenders), [], warm)
    assert warm == {runs["eager"]}


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels")
def test_the_clock_is_that_of_a_processor():
    hz = clock.clock_hz(threads=1)
    if hz is None:
        pytest.skip("the C++ module has no loop for this processor")
    assert 2e8 < hz < 2e10


def test_without_the_kernels_there_is_no_clock(monkeypatch):
    monkeypatch.setattr(cpp, "unavailable", lambda: "it was never built")
    assert clock.clock_hz(threads=1) is None


def test_the_tables_name_floors_cycles_and_instruction_set():
    pytest.importorskip("rich")
    found = [
        record("eager", 8.0),
        record("ours", 3.0, touched=6_000_000, floor_bytes=12, floor_ms=2.5),
    ]
    merged = merging.merge([part("fresh", "avx2", found)], "run.py")
    eager, ours = merged["results"]
    assert tables.title(ours) == "o, s, fp32 (8e-06 MB), avx2"
    assert tables.floors([eager, ours], ["fresh"]) == (
        "floor 8e-06 MB, 2.00 ms; under autograd 1.2e-05 MB, 2.50 ms; copy 8.00 ms"
    )
    headings = [column.header for column in tables.table([], ["fresh"], "ops").columns]
    assert headings[2:4] == ["x\nfloor", "cyc/\nelem"]
    assert tables.cells(ours, ["fresh"])[2:4] == ["1.2", "4.0"]
    assert tables.cells(eager, ["fresh"])[2:4] == ["4.0", "-"]
    about = merged["environment"]["instruction_sets"][0]
    assert next(iter(report.set_lines(about))) == (
        "C++ kernels: avx2; eager torch: avx2; clock 2.00 GHz, measured"
    )
    line = list(report.plain_lines(merged))[1]
    assert "o, s, fp32, avx2, memory fresh: ours 3.00 ms" in line
    assert "x floor 1.2 of 2.50 ms, cycles/element 4.0" in line


def test_extra_memory_of_a_head_is_beside_its_gradients():
    found = record("ours", 3.0, suite="head", returned_bytes=5_000_000, logits_bytes=90_000_000)
    peak = found | {"extra_bytes": 12_000_000}
    parts = [part("fresh", "avx2", [found]), part("memory", "avx2", [peak])]
    (row,) = merging.merge(parts, "run.py")["results"]
    assert (row["extra_bytes"], row["besides_bytes"]) == (12_000_000, 7_000_000)
    assert tables.cells(row, ["fresh"])[-1] == "7"
    assert tables.floors([row], ["fresh"]) == (
        "bare products 2.00 ms; a tenth of the logits 9 MB; extra MB besides gradients of 5 MB"
    )


@pytest.mark.parametrize("width", [80, tables.WIDTH])
def test_the_tables_fit_their_width(width):
    """Every regime that stands side by side at this width, with the widest figures."""
    rich = pytest.importorskip("rich.console")
    more = {"median_ms": 1088.0, "p20_ms": 1088.0, "p80_ms": 1117.0, "touched": 10**8}
    names = {"eager": "eager, original formulas", "compile": "torch.compile",
             "rewritten": "torch.compile, rewritten", "ours": "ours, cpp, autograd"}  # fmt: skip
    found = [record(kind, 1.0, **more) | {"implementation": n} for kind, n in names.items()]
    both = ("reused", "fresh") if width > 80 else ("fresh",)
    merged = merging.merge([part(regime, "avx2", found) for regime in both], "run.py")
    console = rich.Console(width=width, record=True, file=io.StringIO())
    tables.print_cases(merged["results"], list(both), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert sum("1088 [1088-1117]" in line for line in lines) == len(found)
    assert all(any(f" {name} " in line for line in lines) for name in names.values())
    assert not any("…" in line for line in lines)


def test_a_contender_without_a_floor_of_its_own_has_that_of_the_case():
    case = cases.Case("ops", "o", "s", "fp32", (), floor_bytes=8)
    run = cases.Contender("a", "ours", lambda: None)
    assert records.fewest_bytes(case, run) == 8
    assert records.fewest_bytes(case, cases.Contender("a", "ours", lambda: None, 12)) == 12
