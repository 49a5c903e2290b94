"""What one process measures: every case in one memory regime, as plain data for the report."""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

import torch

import sedd_fast as sf
from benchmarks.contenders import compiled, cross_entropy
from benchmarks.contenders.original import Original, why_no_network
from benchmarks.harness import instruction_sets
from benchmarks.harness.cases import Call, Case, backends
from benchmarks.harness.clock import clock_hz
from benchmarks.harness.config import BenchmarkConfig
from benchmarks.harness.cuda_graphs import WallMeter, with_graphs
from benchmarks.harness.environment import machine, provenance
from benchmarks.harness.measuring import Budget, last_level_cache, make_meter
from benchmarks.harness.records import able, memory_records, time_records
from benchmarks.suites import preset
from benchmarks.suites.decoding import decoding_cases
from benchmarks.suites.end_to_end import end_to_end_cases
from benchmarks.suites.head import head_cases, left_out
from benchmarks.suites.ops import op_cases
from benchmarks.suites.small import small_cases
from benchmarks.suites.softmax_head import softmax_head_cases
from benchmarks.suites.sums import sums_cases
from benchmarks.suites.sweep import sweep_cases
from sedd_fast.backends import cpp


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
    if args.isa:
        instruction_sets.limit_compiler()
    config = config_of(args, remarks)
    original = original_of(args, remarks)
    cold = not (args.quick or args.warm)
    meter = make_meter(torch.device(args.device), evict=cold)
    walls = WallMeter(cold) if args.device == "cuda" and not args.no_graphs else None
    about, records = environment(args, config), []
    used = used_by(args, config, remarks)
    for every in all_cases(config, original):
        started = time.monotonic()
        warm: set[Call] = set()
        cases = tuple(able(case, remarks, warm) for case in every)
        if args.worker == "memory":
            records += memory_records(meter, cases, warm)
        else:
            timed = time_records(meter, cases, config.budget, warm)
            if args.device == "cpu":
                clock = clock_hz(torch.get_num_threads())
                timed = [t | {"clock_hz": clock} for t in timed]
            if args.device == "cuda":  # its allocator counts exactly, whatever the regime
                timed = [t | m for t, m in zip(timed, memory_records(meter, cases), strict=True)]
            if walls is not None:
                timed = with_graphs(timed, (meter, walls), cases, config.budget, remarks)
            records += timed
        what = f"{cases[0].operation} ({', '.join(case.dtype for case in cases)})"
        print(f"  {args.worker:7} {what}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        part = {"regime": args.worker, "environment": about, "remarks": remarks}
        yield part | used | {"records": records}


def used_by(
    args: argparse.Namespace, config: BenchmarkConfig, remarks: list[str]
) -> dict[str, Any]:
    """The instruction sets that the C++ kernels and torch use; None on a GPU."""
    if args.device == "cuda":
        return {"instruction_set": None, "torch_uses": None}
    if reason := cpp.unavailable():
        remarks.append(f"no cycles per element, the clock is not known: {reason}")
    if config.compile and (line := instruction_sets.remark()):
        remarks.append(line)
    return {
        "instruction_set": sf.info().instruction_set,
        "torch_uses": instruction_sets.used_by_torch(config.compile),
    }


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
    if "preset" in args.suite:
        remarks += preset.missing()
    tiny: dict[str, Any] = {}
    if args.quick:
        tiny = {"hidden_size": 32, "n_blocks": 1, "steps": 2, "quick": True}
    config = BenchmarkConfig(
        suites=args.suite,
        device=args.device,
        dtypes=args.dtype,
        positions=args.positions,
        vocab_size=args.vocab,
        masked=args.masked,
        head_positions=args.head_positions,
        operations=args.operations,
        slow=args.slow,
        backends=tuple(args.backend or ()),
        compile=not args.no_compile and reason is None,
        budget=Budget(args.rounds, args.seconds),
        **tiny,
    )
    if "head" in args.suite:
        remarks += left_out(config)
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
    """The cases of every suite and operation asked for; those in one tuple are measured together.

    A case is made when it is due, so that the tensors of only one exist.
    """
    titles: set[str] = set()
    for cases in cases_of_suites(config, original):
        titles.update(case.operation for case in cases)
        if not config.operations or any(c.operation in config.operations for c in cases):
            yield cases
    if wrong := sorted(set(config.operations) - titles):
        known = "; ".join(sorted(titles))
        refuse(f"--operations: there is no {wrong[0]!r}; known are: {known}")


def cases_of_suites(
    config: BenchmarkConfig, original: Original | None
) -> Iterator[tuple[Case, ...]]:
    """The cases of every suite."""
    if "ops" in config.suites:
        yield from ((case,) for case in op_cases(config, original))
        yield from ((case,) for case in sums_cases(config))
    if "head" in config.suites:
        yield from ((case,) for case in head_cases(config, original))
        yield from ((case,) for case in softmax_head_cases(config))
        yield from ((case,) for case in decoding_cases(config))
    if "sweep" in config.suites:
        yield from ((case,) for case in sweep_cases(config))
    yield from ((case,) for case in end_to_end_cases(config, original))
    if "preset" in config.suites:
        yield from ((case,) for case in preset.preset_cases(config))
    if "small" in config.suites:
        yield from small_cases(config)


def environment(args: argparse.Namespace, config: BenchmarkConfig) -> dict[str, Any]:
    """The machine, the versions and the config of the run."""
    return {
        **provenance(),
        **machine(args.device),
        "cache_bytes": last_level_cache(),
        "backends": backends(config),
        "settings": asdict(config) | {"caches": "warm" if args.warm else "cold"},
    }
