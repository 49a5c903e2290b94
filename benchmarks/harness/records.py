"""A case, measured: one record of plain data for each of its contenders."""

import mmap
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import Call, Case, Contender
from benchmarks.harness.measuring import Budget, Meter, Timing, interleave

#: What a contender that cannot run a case may raise, compilers' errors included.
FAILURES = (RuntimeError, AssertionError, ImportError, TypeError, ValueError)


def able(case: Case, remarks: list[str], warm: set[Call]) -> Case:
    """The case without the contenders whose first call fails; a remark says why of each.

    ``warm`` gets the calls that took over a second: they need no second call to warm up. Those that
    have compiled need one.
    """
    found = []
    for contender in case.contenders:
        started = time.monotonic()
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
            if time.monotonic() - started > 1 and contender.kind not in ("compile", "rewritten"):
                warm.add(contender.run)
    return replace(case, contenders=tuple(found))


def time_records(
    meter: Meter, cases: tuple[Case, ...], budget: Budget, warm: Collection[Call] = ()
) -> list[dict[str, Any]]:
    """Times of every contender, and of the yardsticks timed in turn with them.

    A call that several of the cases share is timed once, for all of them. Those in ``warm`` are not
    called before they are timed.
    """
    extras = [yardsticks(case) for case in cases]
    runs = [c.run for case in cases for c in case.contenders]
    runs += [run for extra in extras for run in extra.values()]
    whole = replace(budget, seconds=budget.seconds * len(cases))
    timing = interleave(meter, {run: run for run in runs}, whole, warm)
    found = (times_of(*pair, timing) for pair in zip(cases, extras, strict=True))
    return [record for records in found for record in records]


def times_of(
    case: Case, extra: dict[str, Call], timing: dict[Call, Timing]
) -> Iterator[dict[str, Any]]:
    """The records of one case, each with its floor: that of its form where it has one."""
    measured = {name: timing[run].median_ms for name, run in extra.items()}
    for c in case.contenders:
        record = describe(case, c) | asdict(timing[c.run])
        yield record | {"floor_ms": floor_of(case, c, measured), "yardsticks_ms": measured}


def floor_of(case: Case, contender: Contender, measured: dict[str, float]) -> float | None:
    """Milliseconds: the fewest bytes that must move, at the bandwidth of the copy that was timed in
    turn with the contenders; or the fastest of the calls that are the floor.
    """
    size = fewest_bytes(case, contender)
    if size is None or case.tensor is None:
        return min((measured[name] for name in case.floor_runs), default=None)
    copied = 2 * case.tensor.numel() * case.tensor.element_size()
    return measured["copy"] * size / copied


def fewest_bytes(case: Case, contender: Contender) -> int | None:
    """Bytes that the contender's form of the operation must move."""
    return case.floor_bytes if contender.floor_bytes is None else contender.floor_bytes


def yardsticks(case: Case) -> dict[str, Call]:
    """What the contenders are compared with: a copy into preallocated memory, a copy that allocates
    its result, one read; or the calls of which the fastest is the floor.
    """
    if case.tensor is None:
        return dict(case.floor_runs)
    source, target = case.tensor, copy_target(case.tensor)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), "clone": source.clone}
    if source.is_floating_point():
        # As float32 whatever the dtype: on some CPUs a sum of bf16 is not limited by memory.
        calls["read"] = source.flatten()[: source.numel() // 2 * 2].view(torch.float32).sum
    return calls


def copy_target(source: Tensor) -> Tensor:
    """Memory into which the source is copied; on a CPU new pages, of the system's default size.

    The allocator may reuse memory of an earlier gradient, which is in pages of 2 MB. A copy into
    these is up to 1.5 times as fast, so the floor of a case would depend on the cases before it.
    """
    if source.device.type != "cpu":
        return torch.empty_like(source)
    pages = mmap.mmap(-1, source.numel() * source.element_size())
    return torch.frombuffer(pages, dtype=source.dtype).view(source.shape)


def memory_records(
    meter: Meter, cases: tuple[Case, ...], warm: Collection[Call] = ()
) -> list[dict[str, Any]]:
    """Peak extra memory of every contender; a call that several cases share is measured once."""
    entries = [(case, contender) for case in cases for contender in case.contenders]
    runs = dict.fromkeys(c.run for _, c in entries)
    peaks = {run: peak_of(meter, run, run in warm) for run in runs}
    return [describe(case, c) | {"extra_bytes": peaks[c.run]} for case, c in entries]


def peak_of(meter: Meter, run: Call, warm: bool) -> int | None:
    """The larger peak of two calls after one to warm up; of one call where it takes over a second.

    ``warm``: there has been such a call, and it took over a second.
    """
    slow = warm or meter.time(run) > 1e3
    peaks = [meter.peak_extra(run) for _ in range(1 if slow else 2)]
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
        "floor_bytes": fewest_bytes(case, contender),
        "touched": case.touched,
        "tensor_bytes": None if tensor is None else tensor.numel() * tensor.element_size(),
        "returned_bytes": case.returned_bytes,
        "logits_bytes": case.logits_bytes,
    }
