"""Everything that a GPU machine can say about this checkout: build, tests, figures. ``make gpu``.

    python3 benchmarks/on_gpu.py                           # all steps: about half an hour
    python3 benchmarks/on_gpu.py --only build,tests        # some, once there is a build
    python3 benchmarks/on_gpu.py --only ops,head,batch --minutes 9.5 --results /elsewhere

It uses the machine's own Python and torch and makes no virtual environment: the machine may be
offline. It needs torch with CUDA, Triton, NumPy, pytest, and for the build setuptools, pybind11,
ninja and a C++ compiler; with nvcc the CUDA kernels are built for the GPU that is there. Nothing
else of the package's dependencies is needed. A step that fails, or outlasts its limit, stops none
but itself, save the build; what the benchmarks had measured by then is in the results.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a step needs of Python.
NEEDED = ("torch", "numpy", "pytest")
TO_BUILD = ("setuptools", "pybind11", "ninja", "pip")
OLDEST_SETUPTOOLS = 77  # as pyproject.toml has it
#: The steps in their order, and the seconds after which one is given up: about twice what is
#: expected.
STEPS = {
    "build": 400,
    "tests": 560,
    "ops": 500,
    "head": 300,
    "batch": 300,
    "sweep": 560,
    "runs": 300,
    "sanitizer": 560,
}
#: What a step that is given up may take to say what it knows.
GRACE = 15
#: Suites of run.py -> seconds for each case of them.
SUITES = {"ops": ("ops", "2"), "head": ("head", "4"), "sweep": ("sweep", "0.5"),
          "runs": ("train,sample", "4")}  # fmt: skip
#: Tests at a time, where pytest-xdist is there: most of their time is compiling, on the host.
TESTS_AT_A_TIME = min(8, os.cpu_count() or 1)


def main(argv: list[str]) -> int:
    """The steps asked for, in turn: 0, or the exit status of the first that failed."""
    args = options(argv)
    if reason := refusal(args.only):
        print(reason, file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device; python -m torch.utils.collect_env says more", file=sys.stderr)
        return 2
    args.results.mkdir(parents=True, exist_ok=True)
    stem = args.results / result_name(torch.cuda.get_device_name())
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    statuses, until = {}, time.monotonic() + 60 * args.minutes
    for step in args.only:
        started = time.monotonic()
        statuses[step] = take(step, stem, capability, min(until, started + STEPS[step]))
        said = "done" if statuses[step] == 0 else f"FAILED ({statuses[step]})"
        print(f"= {step}: {said} after {time.monotonic() - started:.0f} s", flush=True)
        if step == "build" and statuses[step]:
            break
    return next(filter(None, statuses.values()), 0)


def options(argv: list[str]) -> argparse.Namespace:
    """The command line; ``only`` in the order of STEPS."""
    summary, rest = (__doc__ or "").split("\n\n", 1)
    p = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--only", type=_steps, default=tuple(STEPS), help=f"some of {','.join(STEPS)} (default all)"
    )
    p.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder (%(default)s)"
    )
    p.add_argument(
        "--minutes", type=float, default=float("inf"), help="for all steps together (no limit)"
    )
    args = p.parse_args(argv)
    args.results = args.results.expanduser().resolve()
    return args


def _steps(text: str) -> tuple[str, ...]:
    asked = text.split(",")
    if wrong := [step for step in asked if step not in STEPS]:
        raise argparse.ArgumentTypeError(f"steps are {', '.join(STEPS)}, got {wrong[0]!r}")
    return tuple(step for step in STEPS if step in asked)


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


def take(step: str, stem: Path, capability: str, until: float) -> int:
    """One step up to a time: the exit status of its first command that fails, or 0."""
    commands, environment = commands_of(step, stem), {}
    if step == "build":
        asked = os.environ.get("SEDD_FAST_CUDA_ARCHS", capability)
        environment = {"SEDD_FAST_CUDA_ARCHS": asked}
    found = (run(words, environment, until) for words in commands)
    return next(filter(None, found), 0)


def commands_of(step: str, stem: Path) -> list[tuple[str, ...]]:
    """What Python is given; results begin with the path ``stem``."""
    benchmarks = ROOT / "benchmarks"
    pytest = ("-m", "pytest", "-q", "--tb=short", "--durations=10", "tests/ops", "-m")
    if step == "build":
        info = "import sedd_fast; print(sedd_fast.info())"
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        return [(*install, "--no-build-isolation", "--no-deps", "-e", "."), ("-c", info)]
    if step == "tests":
        # A broken kernel fails thousands of tests alike: fifty say it, and leave time for the rest.
        workers = ("-n", str(TESTS_AT_A_TIME)) if importlib.util.find_spec("xdist") else ()
        report = f"--junitxml={stem}-tests.xml"
        return [(*pytest, "gpu and not slow", "--maxfail=50", report, *workers)]
    if step == "sanitizer":
        return [(*pytest, "gpu and slow")]
    if step == "batch":
        return [(str(benchmarks / "largest_batch.py"), "--json", f"{stem}-batch.json")]
    suites, seconds = SUITES[step]
    figures = Path(f"{stem}-{step}.json")
    measured = ("--device", "cuda", "--suite", suites, "--seconds", seconds)
    files = ("--json", str(figures), "--plot", str(figures.with_suffix(".png")))
    made = [(str(benchmarks / "run.py"), *measured, *files)]
    if step in ("head", "sweep"):
        made.append((str(benchmarks / "choices.py"), str(figures)))
    return made


def result_name(device: str) -> str:
    """Day, GPU and commit: 2026-11-21-h200-0123456789ab."""
    device = re.sub(r"nvidia|geforce", "", device.lower())
    device = re.sub(r"[^a-z0-9]+", "-", device).strip("-")
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return "-".join([time.strftime("%Y-%m-%d"), device, commit or "unknown"])


def run(words: tuple[str, ...], environment: Mapping[str, str], until: float) -> int:
    """``python ...`` in the checkout; 124 where it was not done in time."""
    if time.monotonic() + GRACE >= until:
        return 124
    print("+ python", *words, flush=True)
    command, given = [sys.executable, *words], {**os.environ, **environment}
    # A group of its own, so that what it started is stopped with it.
    process = subprocess.Popen(command, cwd=ROOT, env=given, preexec_fn=os.setpgrp)
    try:
        return process.wait(until - GRACE - time.monotonic())
    except subprocess.TimeoutExpired:
        return 124
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt what still runs, as Ctrl-C does; kill it where it will not end."""
    for sent, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
