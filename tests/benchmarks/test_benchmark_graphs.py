"""CUDA-graph replays in the benchmark, on a torch.cuda that only records what is called."""

from typing import Any

import pytest
import torch

from benchmarks.harness import cases, cuda_graphs, measuring, merging, report, tables

BUDGET = measuring.Budget(rounds=3, seconds=1.0)


class FakeMeter:
    """Every call takes a quarter of a millisecond; calls it."""

    def time(self, call: Any) -> float:
        call()
        return 0.25

    def peak_extra(self, call: Any) -> int | None:
        return None


class Graph:
    def replay(self) -> None:
        SEEN.append("replay")

    def reset(self) -> None:
        SEEN.append("free")


SEEN: list[str] = []


def record(call: Any, device: torch.device) -> tuple[Graph, Any]:
    """Stands for ``backends.cuda_graphs.record``."""
    SEEN.append("capture")
    made = call()
    SEEN.append("end")
    return Graph(), made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of torch.cuda, in order."""
    SEEN.clear()
    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: SEEN.append("wait"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return SEEN


def case(suite: str, **calls: Any) -> cases.Case:
    contenders = tuple(cases.Contender(name, "ours", call) for name, call in calls.items())
    return cases.Case(suite, "loss", "2 x 3", "bf16", contenders)


def test_a_graph_is_freed_after_its_replays(gpu):
    with cuda_graphs.captured(lambda: gpu.append("call")) as graph:
        graph.replay()
    assert gpu == ["capture", "call", "end", "replay", "wait", "free"]


def test_a_replay_and_the_wall_time_stand_beside_the_eager_call(gpu):
    calls: list[str] = []
    one = case("ops", ours=lambda: calls.append("ours"))
    remarks: list[str] = []
    (record,) = cuda_graphs.with_graphs(
        [{"median_ms": 0.2}], (FakeMeter(), FakeMeter()), (one,), BUDGET, remarks
    )
    assert record["median_ms"] == 0.2
    assert record["replay"]["median_ms"] == record["wall"]["median_ms"] == 0.25
    assert gpu.count("replay") == 1 + record["replay"]["calls"]
    assert gpu.count("free") == 1
    assert remarks == []


def test_what_cannot_be_captured_is_a_dash_and_a_remark(gpu):
    def waits() -> None:
        if gpu and gpu[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    remarks: list[str] = []
    both = case("head", waits=waits, ours=lambda: None)
    first, second = cuda_graphs.graph_records((FakeMeter(), FakeMeter()), both, BUDGET, remarks)
    assert first["replay"] is None
    assert first["wall"] is not None
    assert second["replay"] is not None
    assert remarks == [
        "waits has no CUDA graph in loss (bf16): RuntimeError: "
        "operation not permitted when stream is capturing"
    ]
    assert gpu.count("free") == 1


def test_a_training_step_is_not_captured(gpu):
    (record,) = cuda_graphs.graph_records(
        (FakeMeter(), FakeMeter()), case("train", ours=lambda: None), BUDGET, []
    )
    assert record == {"replay": None, "wall": None}
    assert gpu == []


def test_the_wall_time_is_that_of_an_idle_gpu(gpu):
    class Evictor:
        def sum(self) -> None:
            gpu.append("evict")

    meter = object.__new__(cuda_graphs.WallMeter)
    meter._evictor = Evictor()
    assert meter.time(lambda: gpu.append("call")) > 0
    assert gpu == ["evict", "wait", "call", "wait"]


def rows(device: str, **more: Any) -> dict[str, Any]:
    """A report's rows of one contender in one regime."""
    times = {"median_ms": 1.0, "p20_ms": 1.0, "p80_ms": 1.0, "calls": 3, "floor_ms": 0.5}
    keys = {"suite": "ops", "operation": "loss", "shape": "2 x 3", "dtype": "bf16"}
    record = keys | {"implementation": "ours", "kind": "ours"} | times
    record |= dict.fromkeys(merging.SIZES) | {"floor_bytes": 8, "tensor_bytes": 8} | more
    record |= {"yardsticks_ms": {"copy": 1.0, "read": 1.0, "clone": 1.0}}
    part = {"regime": device, "instruction_set": None, "torch_uses": None}
    part |= {"environment": {}, "remarks": [], "records": [record]}
    return merging.merge([part], "run.py")


def test_the_report_shows_them_on_a_gpu_only():
    pytest.importorskip("rich")
    replayed = rows("cuda", replay={"median_ms": 0.75}, wall={"median_ms": 12.0})["results"]
    assert tables.cells(replayed[0], ["cuda"])[2:4] == ["0.75", "12.0"]
    headings = [column.header for column in tables.table([], ["cuda"], "ops").columns]
    assert headings[2:4] == ["graph\nms", "wall\nms"]
    assert len(headings) == len(tables.cells(replayed[0], ["cuda"]))
    refused = rows("cuda", replay=None, wall={"median_ms": 12.0})["results"]
    assert tables.cells(refused[0], ["cuda"])[2] == "-"
    on_cpu = rows("fresh")["results"]
    assert on_cpu[0]["regimes"]["fresh"]["replay"] is None
    headings = [column.header for column in tables.table([], ["fresh"], "ops").columns]
    assert "graph\nms" not in headings
    assert len(headings) == len(tables.cells(on_cpu[0], ["fresh"]))


def test_plain_lines_say_the_same():
    written = rows("cuda", replay={"median_ms": 0.75}, wall={"median_ms": 12.0})
    (line, *_) = report.plain_lines(written)
    assert line.endswith("replay 0.75 ms, wall 12.0 ms")
