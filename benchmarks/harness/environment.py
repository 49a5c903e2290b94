"""Where figures come from: date, commit, versions, processor and GPU."""

import importlib.util
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import torch

import sedd_fast
from benchmarks.harness.command import commit
from sedd_fast.environment import processor_name


def provenance() -> dict[str, Any]:
    """When figures were made, by which command, and on which versions."""
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "sedd_fast": sedd_fast.__version__,
        "torch": torch.__version__,
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
    }


def machine(device: str) -> dict[str, Any]:
    """The system, and the GPU with its driver and compilers (all None on a CPU)."""
    about: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
    }
    if device != "cuda":
        return about | dict.fromkeys(("gpu", "capability", "driver", "cuda", "triton"))
    return about | {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
    }


def driver_version() -> str | None:
    """The version of the NVIDIA driver, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None
