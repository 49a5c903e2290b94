"""Everything that a GPU machine can say about this checkout: build, tests, figures. ``make gpu``.

    python3 benchmarks/on_gpu.py

It uses the machine's own Python and torch and makes no virtual environment: the machine may be
offline. It needs torch with CUDA, Triton, NumPy, pytest, and for the build setuptools, pybind11,
ninja and a C++ compiler; with nvcc the CUDA kernels are built for the GPU that is there. Nothing
else of the package's dependencies is needed. Results go to benchmarks/results/. Under ten minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "pytest", "setuptools", "pybind11", "ninja", "pip")
OLDEST_SETUPTOOLS = 77  # as pyproject.toml has it


def main() -> int:
    """The steps in turn, up to the first that fails."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        return refuse(f"{sys.executable} lacks {names}: {sys.executable} -m pip install {names}")
    if int(version("setuptools").partition(".")[0]) < OLDEST_SETUPTOOLS:
        return refuse(
            f"setuptools {version('setuptools')} cannot build the package: "
            f"{sys.executable} -m pip install 'setuptools>={OLDEST_SETUPTOOLS}'"
        )
    import torch

    if not torch.cuda.is_available():
        return refuse("torch finds no CUDA device; python -m torch.utils.collect_env says more")
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    build = run(
        *("pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-build-isolation", "--no-deps", "-e", "."),
        environment={"SEDD_FAST_CUDA_ARCHS": os.environ.get("SEDD_FAST_CUDA_ARCHS", capability)},
    )
    if build:
        return build
    info = "import sedd_fast; print(sedd_fast.info())"
    subprocess.run([sys.executable, "-c", info], cwd=ROOT, check=False)
    tests = run("pytest", "-q", "-m", "gpu", "--durations=10", "tests/ops")
    return tests or benchmark(result_name(torch.cuda.get_device_name()))


def benchmark(name: str) -> int:
    """The figures of every operation, the sweeps, the largest batch: 0, or the first exit status
    that is not.
    """
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    statuses = []
    for suite, seconds, stem in (("ops,head", "4", name), ("sweep", "1", f"{name}-sweep")):
        files = ("--json", str(folder / f"{stem}.json"), "--plot", str(folder / f"{stem}.png"))
        settings = ("--device", "cuda", "--suite", suite, "--seconds", seconds)
        command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *settings, *files]
        statuses.append(subprocess.run(command, cwd=ROOT, check=False).returncode)
    batches = (
        str(ROOT / "benchmarks" / "largest_batch.py"),
        "--json",
        f"{folder / name}-batch.json",
    )
    statuses.append(subprocess.run([sys.executable, *batches], cwd=ROOT, check=False).returncode)
    return next(filter(None, statuses), 0)


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


def run(*words: str, environment: dict[str, str] | None = None) -> int:
    """``python -m ...`` in the checkout."""
    command = [sys.executable, "-m", *words]
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, env=os.environ | (environment or {}))
    return done.returncode


def refuse(message: str) -> int:
    """One line, and the exit status of a wrong call."""
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
