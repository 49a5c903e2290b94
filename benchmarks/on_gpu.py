"""Build, test and measure this checkout on a GPU machine, in minutes. ``make gpu`` calls this.

    python3 benchmarks/on_gpu.py --plan first               # does it work? 5 minutes at most
    python3 benchmarks/on_gpu.py --plan tune --minutes 6    # settings, head, counters, memory
    python3 benchmarks/on_gpu.py --plan compare             # against torch.compile and others
    python3 benchmarks/on_gpu.py --only build,settings --results /elsewhere --commit 0123456789ab
    python3 benchmarks/on_gpu.py                            # every test and sweep: half an hour

It uses the machine's own Python and torch and makes no virtual environment: the machine may be
offline. It needs torch with CUDA, Triton, NumPy, pytest, and for the build setuptools, pybind11,
ninja and nvcc. Nothing else of the package's dependencies is needed. Every step has a time limit. A
step that fails or exceeds its limit does not stop the others, except a failed build; what it has
measured is kept. docs/gpu.md describes the steps, their limits and the results.

Exit status: 0; 2 where nothing could be started; else 10 + the position in the list of steps of the
first step that failed.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import distributions, version
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness.command import ROOT, commit, make_parser, some_of
from benchmarks.harness.gpu_results import Results
from benchmarks.harness.gpu_steps import (
    ALLOCATOR,
    NO_MODULE,
    PLANS,
    PROBE,
    STEPS,
    Command,
    Machine,
)

#: The packages that every step needs, and those that the build needs.
NEEDED = ("torch", "numpy", "pytest")
TO_BUILD = ("setuptools", "pybind11", "ninja", "pip")
OLDEST_SETUPTOOLS = 77  # as pyproject.toml has it
#: Seconds that an interrupted step may take to write what it has measured.
GRACE = 15.0
#: The status of a step that was interrupted at its limit.
CUT_OFF = 124


def main(argv: list[str]) -> int:
    """Take the steps asked for, in turn; the exit status."""
    args = options(argv)
    args.only = with_build(args.only)
    if reason := refusal(args.only):
        print(reason, file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device; python -m torch.utils.collect_env says more", file=sys.stderr)
        return 2
    name = result_name(torch.cuda.get_device_name(), args.commit)
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    try:
        results = Results(args.results, name, args.commit, torch.cuda.get_device_name())
    except OSError as error:
        print(f"--results {args.results} cannot be written: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    until = time.monotonic() + 60 * args.minutes
    if "build" in args.only:
        probe()
    limits = {step: STEPS[step].seconds * args.patience for step in args.only}
    try:
        take_all(limits, results, capability, until)
    except KeyboardInterrupt:
        results.say("interrupted; the results up to here follow")
    print(results.summary(), flush=True)
    return results.exit_status()


def take_all(limits: dict[str, float], results: Results, capability: str, until: float) -> None:
    """Take every step with its limit in seconds; stop after a build that failed."""
    for step, seconds in limits.items():
        started = time.monotonic()
        try:
            status = take(step, results, capability, min(until, started + seconds))
        except KeyboardInterrupt:
            results.finish(step, CUT_OFF, time.monotonic() - started)
            raise
        results.finish(step, status, time.monotonic() - started)
        if step == "build" and status not in (0, NO_MODULE):
            return


def options(argv: list[str]) -> argparse.Namespace:
    """The command line; ``only`` in the order of the plans."""
    p = make_parser(__doc__)
    p.add_argument(
        "--plan",
        type=some_of(*PLANS),
        default=("all",),
        help=f"plans to run, in this order: some of {', '.join(PLANS)} (default: all)",
    )
    p.add_argument(
        "--only",
        type=some_of(*STEPS),
        help=f"steps to take instead of a plan: some of {', '.join(STEPS)}",
    )
    p.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="folder of the results (%(default)s)",
    )
    p.add_argument(
        "--minutes",
        type=_positive,
        default=float("inf"),
        help="limit for all steps together (default: none)",
    )
    p.add_argument(
        "--patience", type=_positive, default=1.0, help="factor of every step's limit (%(default)s)"
    )
    p.add_argument("--commit", help="this checkout's commit, where git is missing")
    args = p.parse_args(argv)
    plans = [plan for plan in PLANS if plan in args.plan]
    planned = tuple(dict.fromkeys(step for plan in plans for step in PLANS[plan]))
    args.only = tuple(step for step in STEPS if step in args.only) if args.only else planned
    args.commit = args.commit or commit() or "unknown"
    args.results = args.results.expanduser().resolve()
    return args


def _positive(text: str) -> float:
    """A number above 0; "nan" is refused, since it would be a limit that is never reached."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return number


def with_build(steps: tuple[str, ...]) -> tuple[str, ...]:
    """The steps, after a build where the package is not installed, as on a fresh machine."""
    return steps if "build" in steps or is_installed() else ("build", *steps)


def is_installed() -> bool:
    """Whether pip installed the package. A checkout that is only on the path may have no compiled
    module, and what an earlier build left in it says nothing about this machine.
    """
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT]
    return any(True for _ in distributions(name="sedd_fast", path=elsewhere))


def refusal(steps: tuple[str, ...]) -> str | None:
    """What this Python lacks for the steps, with the remedy; None if nothing is missing."""
    needed = (*NEEDED, *(TO_BUILD if "build" in steps else ()))
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        return f"{sys.executable} lacks {names}: {sys.executable} -m pip install {names}"
    if "build" in steps and int(version("setuptools").partition(".")[0]) < OLDEST_SETUPTOOLS:
        return (
            f"setuptools {version('setuptools')} cannot build the package: "
            f"{sys.executable} -m pip install 'setuptools>={OLDEST_SETUPTOOLS}'"
        )
    return None


def take(step: str, results: Results, capability: str, until: float) -> int:
    """Run a step until that time; the exit status of its first command that fails, or 0."""
    machine = Machine(
        capability, lambda part: results.part(step, part), results.junit, has_allocator
    )
    commands = STEPS[step].commands(machine)
    statuses = [run(command, until, results.say) for command in commands]
    return next(filter(None, statuses), 0)


@functools.cache
def probe() -> subprocess.Popen[bytes]:
    """A process that tries the allocator of the tests; it runs while the package is built."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", PROBE], env={**os.environ, **ALLOCATOR}, **quiet)


def has_allocator() -> bool:
    """Whether the probe succeeds within half a minute."""
    try:
        return probe().wait(30) == 0
    except subprocess.TimeoutExpired:
        return False


def result_name(device: str, commit: str) -> str:
    """The day, the GPU and the commit: 2026-11-21-h200-0123456789ab."""
    device = re.sub(r"nvidia|geforce", "", device.lower())
    device = re.sub(r"[^a-z0-9]+", "-", device).strip("-")
    commit = re.sub(r"[^A-Za-z0-9._-]+", "-", commit).strip("-")
    return "-".join([time.strftime("%Y-%m-%d"), device, commit])


def run(command: Command, until: float, say: Callable[[str], None] = print) -> int:
    """Run ``python ...`` in the checkout, and pass its lines to ``say``.

    The exit status is CUT_OFF (124) where the command was not done in time.
    """
    say("+ python " + " ".join(command.words))
    if command.reads is not None and not command.reads.exists():
        say(f"  left out: there is no {command.reads.name}")
        return 0
    if time.monotonic() + GRACE >= until:
        say("  left out: no time is left for it")
        return CUT_OFF
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    # A process group of its own, so that its child processes are stopped with it.
    process = subprocess.Popen(
        [sys.executable, *command.words], cwd=ROOT, env=given, preexec_fn=os.setpgrp,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    reader = threading.Thread(target=pass_on, args=(process, say), daemon=True)
    reader.start()
    try:
        return process.wait(until - GRACE - time.monotonic())
    except subprocess.TimeoutExpired:
        return CUT_OFF
    finally:
        stop(process)
        reader.join(2)  # a process that left the group may hold the pipe


def pass_on(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    """Pass on the lines that a process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip("\n"))


def stop(process: subprocess.Popen[str]) -> None:
    """Interrupt a process group, as Ctrl-C does; kill what ignores that or outlives its parent."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group has ended
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may block it for ever
        process.wait(GRACE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
