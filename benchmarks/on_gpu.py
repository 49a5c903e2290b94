"""What a GPU machine can say about this checkout, in minutes: build, tests, figures. ``make gpu``.

    python3 benchmarks/on_gpu.py --plan first               # does it work? 5 minutes at most
    python3 benchmarks/on_gpu.py --plan tune --minutes 6    # settings, head, counters, memory
    python3 benchmarks/on_gpu.py --plan compare             # against torch.compile and others
    python3 benchmarks/on_gpu.py --only build,settings --results /elsewhere --commit 0123456789ab
    python3 benchmarks/on_gpu.py                            # every test and sweep: half an hour

It uses the machine's own Python and torch and makes no virtual environment: the machine may be
offline. It needs torch with CUDA, Triton, NumPy, pytest, and for the build setuptools, pybind11,
ninja and nvcc. Nothing else of the package's dependencies is needed. Every step has a time limit. A
step that fails, or outlasts its limit, stops none but itself, save the build; what was measured by
then is kept. docs/gpu.md describes steps, limits and results.

Exit status: 0; 2 where nothing could be started; else 10 + the position in the list of steps of the
first step that failed.
"""

from __future__ import annotations

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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_results import Results
from gpu_steps import ALLOCATOR, NO_MODULE, PLANS, PROBE, ROOT, STEPS, Command, Machine

#: What a step needs of Python.
NEEDED = ("torch", "numpy", "pytest")
TO_BUILD = ("setuptools", "pybind11", "ninja", "pip")
OLDEST_SETUPTOOLS = 77  # as pyproject.toml has it
#: What a step that is given up may take to say what it knows.
GRACE = 15.0
#: The status of a step that was given up.
CUT_OFF = 124


def main(argv: list[str]) -> int:
    """The steps asked for, in turn; the exit status of the command."""
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
        results.say("interrupted: what was measured by then follows")
    print(results.summary(), flush=True)
    return results.exit_status()


def take_all(limits: dict[str, float], results: Results, capability: str, until: float) -> None:
    """Every step, with its seconds; none after a build that failed."""
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
    summary, rest = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--plan", type=_plans, default=(), help=f"some of {','.join(PLANS)}, in turn (default all)"
    )
    p.add_argument(
        "--only",
        type=_steps,
        default=(),
        help=f"instead of a plan some of the steps {','.join(STEPS)}",
    )
    p.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder (%(default)s)"
    )
    p.add_argument(
        "--minutes", type=_positive, default=float("inf"), help="for all steps together (no limit)"
    )
    p.add_argument(
        "--patience", type=_positive, default=1.0, help="factor of the limits of all steps (1)"
    )
    p.add_argument(
        "--commit", default=None, help="of this checkout, where git does not say (unknown)"
    )
    args = p.parse_args(argv)
    planned = dict.fromkeys(step for plan in args.plan or ("all",) for step in PLANS[plan])
    args.only = args.only or tuple(planned)
    args.commit = args.commit or commit()
    args.results = args.results.expanduser().resolve()
    return args


def _positive(text: str) -> float:
    """A number above 0; what is not one, as "nan", would be a limit that never ends."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return number


def _steps(text: str) -> tuple[str, ...]:
    return _known(text, "steps", tuple(STEPS))


def _plans(text: str) -> tuple[str, ...]:
    return _known(text, "plans", tuple(PLANS))


def _known(text: str, what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the names that were asked for, in their own order."""
    asked = text.split(",")
    if wrong := [name for name in asked if name not in names]:
        raise argparse.ArgumentTypeError(f"{what} are {', '.join(names)}, got {wrong[0]!r}")
    return tuple(name for name in names if name in asked)


def with_build(steps: tuple[str, ...]) -> tuple[str, ...]:
    """The steps, after a build where the package is not installed: on a machine that is fresh."""
    return steps if "build" in steps or is_installed() else ("build", *steps)


def is_installed() -> bool:
    """Whether pip installed it: a checkout that is only on PYTHONPATH has no compiled module."""
    try:
        version("sedd_fast")
    except PackageNotFoundError:
        return False
    return True


def refusal(steps: tuple[str, ...]) -> str | None:
    """What this Python lacks for the steps, and the remedy, or None."""
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
    """One step up to a time: the exit status of its first command that fails, or 0."""
    machine = Machine(
        capability, lambda part: results.part(step, part), results.junit, has_allocator
    )
    commands = STEPS[step].commands(machine)
    statuses = [run(command, until, results.say) for command in commands]
    return next(filter(None, statuses), 0)


@functools.cache
def probe() -> subprocess.Popen[bytes]:
    """A process that allocates as the tests will; it runs while the package is built."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", PROBE], env={**os.environ, **ALLOCATOR}, **quiet)


def has_allocator() -> bool:
    """Whether the probe could, within half a minute."""
    try:
        return probe().wait(30) == 0
    except subprocess.TimeoutExpired:
        return False


def commit() -> str:
    """The commit that git names, or "unknown"."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        found = ""
    return found or "unknown"


def result_name(device: str, commit: str) -> str:
    """Day, GPU and commit: 2026-11-21-h200-0123456789ab."""
    device = re.sub(r"nvidia|geforce", "", device.lower())
    device = re.sub(r"[^a-z0-9]+", "-", device).strip("-")
    commit = re.sub(r"[^A-Za-z0-9._-]+", "-", commit)
    return "-".join([time.strftime("%Y-%m-%d"), device, commit])


def run(command: Command, until: float, say: Callable[[str], None] = print) -> int:
    """``python ...`` in the checkout, its lines to ``say``; 124 where it was not done in time."""
    say("+ python " + " ".join(command.words))
    if command.reads is not None and not command.reads.exists():
        say(f"  left out: there is no {command.reads.name}")
        return 0
    if time.monotonic() + GRACE >= until:
        say("  left out: no time is left for it")
        return CUT_OFF
    given = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    # A group of its own, so that what it started is stopped with it.
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
        reader.join(2)  # what has left the group may hold the pipe


def pass_on(process: subprocess.Popen[str], say: Callable[[str], None]) -> None:
    """What a process prints."""
    assert process.stdout is not None
    for line in process.stdout:
        say(line.rstrip("\n"))


def stop(process: subprocess.Popen[str]) -> None:
    """Interrupt what still runs, as Ctrl-C does; kill what will not end, or outlives its parent."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left, or no more
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it for good
        process.wait(GRACE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
