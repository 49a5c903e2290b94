"""The compiled module ``sedd_fast._cpu``: loading it, and its threads."""

import ctypes
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.compiled import DTYPES


@functools.cache
def kernels() -> Any:
    """The compiled module, on the OpenMP threads that torch has where there are any.

    Threads of our own would find the cores taken by torch's, which spin for a while after every
    operation (docs/performance.md has the figures). A forked child has none of torch's threads, and
    its runtime would wait for them for ever: there the module uses its own.
    """
    compiled = importlib.import_module("sedd_fast._cpu")
    compiled.use_openmp(openmp_address())
    os.register_at_fork(after_in_child=functools.partial(compiled.use_openmp, 0))
    return compiled


def pool() -> str:
    """Whose threads are in use: "shared OpenMP" or "own"."""
    return "shared OpenMP" if kernels().uses_openmp() else "own"


def openmp_address() -> int:
    """Address of GOMP_parallel in the OpenMP runtime of this process, 0 if there is none.

    libgomp defines it, and the runtimes of LLVM and Intel do for compatibility.
    """
    for path in _openmp_runtimes():
        try:
            runtime = ctypes.CDLL(str(path))
        except OSError:  # the file was replaced while it is in use
            continue
        if (function := getattr(runtime, "GOMP_parallel", None)) is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


def _openmp_runtimes() -> list[Path]:
    """OpenMP libraries in this process, torch's own before those that others brought along."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    mapped = (line.split(maxsplit=5) for line in lines)  # a path may hold spaces
    paths = {Path(fields[5]) for fields in mapped if len(fields) == 6}
    found = [p for p in paths if p.name.startswith(("libgomp", "libiomp5", "libomp"))]
    beside = Path(torch.__file__).parent
    return sorted(found, key=lambda path: (beside not in path.parents, path))


def reals(tensor: Tensor | None) -> tuple[int, bool]:
    """Address of a contiguous tensor in float64 or float32, and whether it is float32."""
    return (0, False) if tensor is None else (tensor.data_ptr(), tensor.dtype == torch.float32)


def scores(log_score: Tensor) -> object:
    return kernels().Scores(
        log_score.data_ptr(), DTYPES[log_score.dtype], tuple(log_score.shape), log_score.stride()
    )
