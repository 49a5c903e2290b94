"""A case, measured: one record of plain data for each of its contenders."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks.harness.cases import Call, Case, Contender
from benchmarks.harness.measuring import Budget, Meter, Timing, interleave

#: What a contender that cannot run a case may raise, compilers' errors included.
FAILURES = (RuntimeError, AssertionError, ImportError, TypeError, ValueError)


def able(case: Case, remarks: list[str]) -> Case:
    """The case without the contenders whose first call fails; a remark says why of each."""
    found = []
    for contender in case.contenders:
        try:
            contender.run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # an error of a kernel is raised here
        except FAILURES as error:
            line = (str(error).strip().splitlines() or [""])[0][:160]
            what = f"{contender.name} is left out of {case.operation} ({case.dtype}, {case.shape})"
            remarks.append(f"{what}: {type(error).__name__}: {line}")
            print(f"  {remarks[-1]}", file=sys.stderr)
        else:
            found.append(contender)
    return replace(case, contenders=tuple(found))


def time_records(meter: Meter, cases: tuple[Case, ...], budget: Budget) -> list[dict[str, Any]]:
    """Times of every contender, and of the yardsticks timed in turn with them.

    A call that several of the cases share is timed once, for all of them.
    """
    extras = [yardsticks(case) for case in cases]
    runs = [c.run for case in cases for c in case.contenders]
    runs += [run for extra in extras for run in extra.values()]
    whole = replace(budget, seconds=budget.seconds * len(cases))
    timing = interleave(meter, {run: run for run in runs}, whole)
    found = (times_of(*pair, timing) for pair in zip(cases, extras, strict=True))
    return [record for records in found for record in records]


def times_of(
    case: Case, extra: dict[str, Call], timing: dict[Call, Timing]
) -> Iterator[dict[str, Any]]:
    """The records of one case, with its floor."""
    measured = {name: timing[run].median_ms for name, run in extra.items()}
    floor_ms = min((measured[name] for name in case.floor_runs), default=None)
    if case.floor_bytes is not None and case.tensor is not None:
        copied = 2 * case.tensor.numel() * case.tensor.element_size()
        floor_ms = measured["copy"] * case.floor_bytes / copied
    common = {"floor_ms": floor_ms, "yardsticks_ms": measured}
    return (describe(case, c) | asdict(timing[c.run]) | common for c in case.contenders)


def yardsticks(case: Case) -> dict[str, Call]:
    """What the contenders are compared with: a copy into preallocated memory, a copy that allocates
    its result, one read; or the calls of which the fastest is the floor.
    """
    if case.tensor is None:
        return dict(case.floor_runs)
    source, target = case.tensor, torch.empty_like(case.tensor)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), "clone": source.clone}
    if source.is_floating_point():
        # As float32 whatever the dtype: on some CPUs a sum of bf16 is not limited by memory.
        calls["read"] = source.flatten()[: source.numel() // 2 * 2].view(torch.float32).sum
    return calls


def memory_records(meter: Meter, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """Peak extra memory of every contender; a call that several cases share is measured once."""
    entries = [(case, contender) for case in cases for contender in case.contenders]
    peaks = {run: peak_of(meter, run) for run in dict.fromkeys(c.run for _, c in entries)}
    return [describe(case, c) | {"extra_bytes": peaks[c.run]} for case, c in entries]


def peak_of(meter: Meter, run: Call) -> int | None:
    """The larger peak of two calls after a warm-up; of one call where it takes over a second."""
    seconds = meter.time(run) / 1e3
    peaks = [meter.peak_extra(run) for _ in range(1 if seconds > 1 else 2)]
    return max((peak for peak in peaks if peak is not None), default=None)


def describe(case: Case, contender: Contender) -> dict[str, Any]:
    """The fields of a record that do not depend on a measurement."""
    tensor = case.tensor
    return {
        "suite": case.suite,
        "operation": case.operation,
        "shape": case.shape,
        "dtype": case.dtype,
        "at": case.at,
        "implementation": contender.name,
        "kind": contender.kind,
        "floor_bytes": case.floor_bytes,
        "tensor_bytes": None if tensor is None else tensor.numel() * tensor.element_size(),
    }
