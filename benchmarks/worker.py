"""What one process measures: every case in one memory regime, as plain data for the report."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import compiled
import cross_entropy
import torch
from cases import Call, Case, Contender, backends, op_cases
from graphs import WallMeter, with_graphs
from head import head_cases
from measuring import Budget, Meter, Timing, interleave, last_level_cache, make_meter
from original import Original, why_no_network
from settings import Settings
from small import small_cases
from sums import sums_cases
from sweep import sweep_cases
from workloads import end_to_end_cases

import sedd_fast


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Environment, remarks and a record for every contender, anew after every case.

    Raises:
        SystemExit: the device or a backend asked for is missing; one line says so.
    """
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        refuse("--device cuda: torch sees no CUDA device; leave the option out to use the CPU")
    remarks: list[str] = []
    settings = settings_of(args, remarks)
    original = original_of(args, remarks)
    cold = not (args.quick or args.warm)
    meter = make_meter(torch.device(args.device), evict=cold)
    walls = WallMeter(cold) if args.device == "cuda" and not args.no_graphs else None
    about, records = environment(args, settings), []
    for every in all_cases(settings, original):
        started = time.monotonic()
        cases = tuple(able(case, remarks) for case in every)
        if args.worker == "memory":
            records += memory_records(meter, cases)
        else:
            timed = time_records(meter, cases, settings.budget)
            if args.device == "cuda":  # its allocator counts exactly, whatever the regime
                timed = [t | m for t, m in zip(timed, memory_records(meter, cases), strict=True)]
            if walls is not None:
                timed = with_graphs(timed, (meter, walls), cases, settings.budget, remarks)
            records += timed
        what = f"{cases[0].operation} ({', '.join(case.dtype for case in cases)})"
        print(f"  {args.worker:7} {what}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        yield {"environment": about, "remarks": remarks, "records": records}


#: What a contender that cannot do a case may raise; compilers' errors are among them.
FAILURES = (RuntimeError, AssertionError, ImportError, TypeError, ValueError)


def able(case: Case, remarks: list[str]) -> Case:
    """The case with those of its contenders that one call shows to be able; a remark on others."""
    found = []
    for contender in case.contenders:
        try:
            contender.run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what went wrong on a GPU is known by then
        except FAILURES as error:
            line = (str(error).strip().splitlines() or [""])[0][:160]
            what = f"{contender.name} is left out of {case.operation} ({case.dtype}, {case.shape})"
            remarks.append(f"{what}: {type(error).__name__}: {line}")
            print(f"  {remarks[-1]}", file=sys.stderr)
        else:
            found.append(contender)
    return replace(case, contenders=tuple(found))


def refuse(message: str) -> NoReturn:
    """One line, and the exit code of a wrong option."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def settings_of(args: argparse.Namespace, remarks: list[str]) -> Settings:
    """The command line as settings; without torch.compile, and saying so, where it cannot run."""
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
    settings = Settings(
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
    if backends(settings) == ("reference",) and not settings.backends:
        remarks.append("only the reference backend runs here: it stands in for ours")
    return settings


def check_backend(backend: str, device: str) -> None:
    """SystemExit with the reason unless that backend runs on that device."""
    from sedd_fast.backends import registry

    if backend not in registry.BACKENDS:
        refuse(f"--backend must be one of {', '.join(registry.BACKENDS)}, got {backend!r}")
    if reason := registry.unavailable(backend, device):
        refuse(f"--backend {backend}: {reason}")


def original_of(args: argparse.Namespace, remarks: list[str]) -> Original | None:
    """The original's code where a checkout was given."""
    if not args.reference:
        return None
    reason = why_no_network(torch.device(args.device))
    remarks.append(
        "the original's operations are run from its checkout, on our network; its own network is "
        f"not timed: {reason or 'its loss and sampler are what is compared'}"
    )
    return Original(args.reference)


def all_cases(settings: Settings, original: Original | None) -> Iterator[tuple[Case, ...]]:
    """The cases of every suite asked for; together those that are measured together."""
    if "ops" in settings.suites:
        yield from ((case,) for case in op_cases(settings, original))
        yield from ((case,) for case in sums_cases(settings))
    if "head" in settings.suites:
        yield from ((case,) for case in head_cases(settings, original))
    if "sweep" in settings.suites:
        yield from ((case,) for case in sweep_cases(settings))
    yield from ((case,) for case in end_to_end_cases(settings, original))
    if "small" in settings.suites:
        yield from small_cases(settings)


def time_records(meter: Meter, cases: tuple[Case, ...], budget: Budget) -> list[dict[str, Any]]:
    """Times of every contender, and of the yardsticks called in turn with them.

    What stands in several of the cases is timed once, for all of them.
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
    """What the contenders are held against: a copy into memory that is there, a copy that allocates
    what it returns, one read; or what stands for the floor.
    """
    if case.tensor is None:
        return dict(case.floor_runs)
    source, target = case.tensor, torch.empty_like(case.tensor)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), "clone": source.clone}
    if source.is_floating_point():
        # As float32 whatever it holds: the sum of bf16 is not bound by memory on every CPU.
        calls["read"] = source.flatten()[: source.numel() // 2 * 2].view(torch.float32).sum
    return calls


def memory_records(meter: Meter, cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """Peak extra memory of every contender; of one that stands in several cases found once."""
    entries = [(case, contender) for case in cases for contender in case.contenders]
    peaks = {run: peak_of(meter, run) for run in dict.fromkeys(c.run for _, c in entries)}
    return [describe(case, c) | {"extra_bytes": peaks[c.run]} for case, c in entries]


def peak_of(meter: Meter, run: Call) -> int | None:
    """After a call to warm up: the larger of two calls, where they take under a second."""
    seconds = meter.time(run) / 1e3
    peaks = [meter.peak_extra(run) for _ in range(1 if seconds > 1 else 2)]
    return max((peak for peak in peaks if peak is not None), default=None)


def describe(case: Case, contender: Contender) -> dict[str, Any]:
    """What is known of a contender before it runs."""
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


def environment(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Everything that a reader of the figures may ask about."""
    return {
        "command": "",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "sedd_fast": sedd_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cache_bytes": last_level_cache(),
        **gpu_environment(args.device),
        "backends": backends(settings),
        "settings": asdict(settings) | {"caches": "warm" if args.warm else "cold"},
    }


def provenance(script: str) -> dict[str, Any]:
    """Where and when the figures of a small benchmark were made, and by which command."""
    return {
        "command": " ".join([f"benchmarks/{script}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }


def gpu_environment(device: str) -> dict[str, Any]:
    """The GPU, its driver, and what the kernels are compiled by; all None on a CPU."""
    if device != "cuda":
        return dict.fromkeys(("gpu", "capability", "driver", "cuda", "triton"))
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
    }


def driver_version() -> str | None:
    """The NVIDIA driver's, as nvidia-smi gives it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit of this checkout, with "+" where files differ from it; None outside git."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(folder), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return head and head + ("+" if changed else "")
