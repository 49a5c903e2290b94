"""What one process measures: every case in one memory regime, as plain data for the report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch

from benchmarks.contenders import compiled, cross_entropy
from benchmarks.contenders.original import Original, why_no_network
from benchmarks.harness.cases import Call, Case, Contender, backends
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.harness.cuda_graphs import WallMeter, with_graphs
from benchmarks.harness.environment import machine, provenance
from benchmarks.harness.measuring import (
    Budget,
    Meter,
    Timing,
    interleave,
    last_level_cache,
    make_meter,
)
from benchmarks.suites.end_to_end import end_to_end_cases
from benchmarks.suites.head import head_cases
from benchmarks.suites.ops import op_cases
from benchmarks.suites.small import small_cases
from benchmarks.suites.sums import sums_cases
from benchmarks.suites.sweep import sweep_cases


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Environment, remarks and a record for every contender; yields all so far after every case.

    Raises:
        SystemExit: the device or a backend asked for is missing; the reason is printed.
    """
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        refuse("--device cuda: torch sees no CUDA device; leave the option out to use the CPU")
    remarks: list[str] = []
    config = config_of(args, remarks)
    original = original_of(args, remarks)
    cold = not (args.quick or args.warm)
    meter = make_meter(torch.device(args.device), evict=cold)
    walls = WallMeter(cold) if args.device == "cuda" and not args.no_graphs else None
    about, records = environment(args, config), []
    for every in all_cases(config, original):
        started = time.monotonic()
        cases = tuple(able(case, remarks) for case in every)
        if args.worker == "memory":
            records += memory_records(meter, cases)
        else:
            timed = time_records(meter, cases, config.budget)
            if args.device == "cuda":  # its allocator counts exactly, whatever the regime
                timed = [t | m for t, m in zip(timed, memory_records(meter, cases), strict=True)]
            if walls is not None:
                timed = with_graphs(timed, (meter, walls), cases, config.budget, remarks)
            records += timed
        what = f"{cases[0].operation} ({', '.join(case.dtype for case in cases)})"
        print(f"  {args.worker:7} {what}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        yield {"environment": about, "remarks": remarks, "records": records}


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


def refuse(message: str) -> NoReturn:
    """Print one line, and exit with the status of a wrong option."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def config_of(args: argparse.Namespace, remarks: list[str]) -> BenchmarkConfig:
    """The command line as a config; without torch.compile where it cannot run, with a remark."""
    for backend in args.backend or ():
        check_backend(backend, args.device)
    reason = None if args.no_compile else compiled.why_unavailable(torch.device(args.device))
    if reason:
        remarks.append(f"torch.compile is left out, it cannot compile here: {reason}")
    if "head" in args.suite:
        remarks += cross_entropy.missing(args.device)
    tiny: dict[str, Any] = {}
    if args.quick:
        tiny = {"hidden_size": 32, "n_blocks": 1, "steps": 2, "head_positions": (32, 64)}
    config = BenchmarkConfig(
        suites=args.suite,
        device=args.device,
        dtypes=args.dtype,
        positions=args.positions,
        vocab_size=args.vocab,
        masked=args.masked,
        backends=tuple(args.backend or ()),
        compile=not args.no_compile and reason is None,
        budget=Budget(args.rounds, args.seconds),
        **tiny,
    )
    if backends(config) == ("reference",) and not config.backends:
        remarks.append("only the reference backend runs here: it stands in for ours")
    return config


def check_backend(backend: str, device: str) -> None:
    """SystemExit with the reason unless that backend runs on that device."""
    from sedd_fast.backends import registry

    if backend not in registry.BACKENDS:
        refuse(f"--backend must be one of {', '.join(registry.BACKENDS)}, got {backend!r}")
    if reason := registry.unavailable(backend, device):
        refuse(f"--backend {backend}: {reason}")


def original_of(args: argparse.Namespace, remarks: list[str]) -> Original | None:
    """The original's code, where a checkout was given."""
    if not args.reference:
        return None
    reason = why_no_network(torch.device(args.device))
    remarks.append(
        "the original's operations are run from its checkout, on our network; its own network is "
        f"not timed: {reason or 'its loss and sampler are what is compared'}"
    )
    return Original(args.reference)


def all_cases(config: BenchmarkConfig, original: Original | None) -> Iterator[tuple[Case, ...]]:
    """The cases of every suite asked for; those in one tuple are measured together."""
    if "ops" in config.suites:
        yield from ((case,) for case in op_cases(config, original))
        yield from ((case,) for case in sums_cases(config))
    if "head" in config.suites:
        yield from ((case,) for case in head_cases(config, original))
    if "sweep" in config.suites:
        yield from ((case,) for case in sweep_cases(config))
    yield from ((case,) for case in end_to_end_cases(config, original))
    if "small" in config.suites:
        yield from small_cases(config)


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


def environment(args: argparse.Namespace, config: BenchmarkConfig) -> dict[str, Any]:
    """The machine, the versions and the config of the run."""
    return {
        **provenance(),
        **machine(args.device),
        "cache_bytes": last_level_cache(),
        "backends": backends(config),
        "settings": asdict(config) | {"caches": "warm" if args.warm else "cold"},
    }
