"""Two more times of a call on a GPU: replayed as a CUDA graph, and wall time with its launch.

The eager time (measuring.CudaMeter) is that of the GPU alone, as long as the spin before it hides
the time that Python needs to launch the kernels. A replay has no such limit: the kernels of a call
follow each other as fast as the GPU takes them. The wall time is that of one call on an idle GPU;
wall minus replay is the cost of launching.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.harness.cases import Case, Contender
from benchmarks.harness.measuring import Budget, CudaMeter, Meter, Timing, interleave
from sedd_fast.backends.cuda_graphs import record

#: Suites whose calls are captured; a training step or a sampling run synchronises the device.
SUITES = ("ops", "head", "vocabulary", "noised")
#: What a call that cannot be captured may raise.
FAILURES = (RuntimeError, AssertionError, TypeError, ValueError)


class WallMeter(CudaMeter):
    """Wall time of a call on an idle GPU, until it is idle again."""

    def time(self, call: Callable[[], object]) -> float:
        self._evictor.sum()
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        call()
        torch.cuda.synchronize()
        return (time.perf_counter_ns() - start) / 1e6


def with_graphs(
    records: list[dict[str, Any]],
    meters: tuple[Meter, Meter],
    cases: tuple[Case, ...],
    budget: Budget,
    remarks: list[str],
) -> list[dict[str, Any]]:
    """The records of some cases, each with the times of ``graph_records`` added."""
    each = (graph_records(meters, case, budget, remarks) for case in cases)
    found = (record for records in each for record in records)
    return [record | more for record, more in zip(records, found, strict=True)]


def graph_records(
    meters: tuple[Meter, Meter], case: Case, budget: Budget, remarks: list[str]
) -> list[dict[str, Any]]:
    """Timings ``replay`` and ``wall`` of every contender; None where they were not measured.

    Args:
        meters: one for replays, one for wall time.
        budget: of the case in eager mode; each of the two measurements takes half of its seconds.
        remarks: gets a line for every contender that cannot be captured.
    """
    if case.suite not in SUITES:
        return [{"replay": None, "wall": None} for _ in case.contenders]
    half = replace(budget, seconds=budget.seconds / 2)
    share = replace(half, seconds=half.seconds / max(1, len(case.contenders)))
    walls = interleave(meters[1], {c.run: c.run for c in case.contenders}, half)
    found = []
    for contender in case.contenders:
        timing = replay(meters[0], case, contender, share, remarks)
        found.append(
            {"replay": None if timing is None else asdict(timing)}
            | {"wall": asdict(walls[contender.run])}
        )
    return found


def replay(
    meter: Meter, case: Case, contender: Contender, budget: Budget, remarks: list[str]
) -> Timing | None:
    """Time one contender's graph. One graph exists at a time: it keeps all memory of its call."""
    try:
        with captured(contender.run) as graph:
            return interleave(meter, {contender.name: graph.replay}, budget)[contender.name]
    except FAILURES as error:
        cause: BaseException = error
        while cause.__context__ is not None:  # the end of a capture reports only that it has failed
            cause = cause.__context__
        line = (str(cause).strip().splitlines() or [""])[0][:160]
        what = f"{contender.name} has no CUDA graph in {case.operation} ({case.dtype})"
        remarks.append(f"{what}: {type(cause).__name__}: {line}")
        return None


@contextlib.contextmanager
def captured(call: Callable[[], object]) -> Iterator[torch.cuda.CUDAGraph]:
    """The call as a graph, whose results are in its own memory; the graph is freed afterwards."""
    graph, made = record(call, torch.device("cuda", torch.cuda.current_device()))
    try:
        yield graph
    finally:
        del made
        torch.cuda.synchronize()
        graph.reset()
        torch.cuda.empty_cache()
