"""Which backend is the fastest for an operation, where it was measured on such a GPU.

The registry asks here first and falls back to its own order. Rows come from the benchmark:

    python benchmarks/run.py --device cuda --suite sweep,head --json sweep.json
    python -m benchmarks.studies.choices sweep.json    # prints the rows to put into MEASURED

Only a backend that beats the registry's first by more than the noise of a run gets a row.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """One measured preference: for ``least`` to ``most`` states on GPUs of one capability."""

    capability: tuple[int, int]
    op: str
    graph: str
    dtype: str
    least: int
    most: int | None
    backend: str


#: On an H200 (benchmarks/results/), 8,192 rows of 50,257 states: a step of the uniform graph takes
#: 0.224 ms on "cuda" and 0.247 on "triton" (Euler), 0.283 and 0.279 (analytic), 0.69 and 0.83
#: (temperature and top-p).
MEASURED: tuple[Choice, ...] = (
    Choice((9, 0), "reverse_step", "uniform", "bfloat16", 25_001, None, "cuda"),
)


def measured(op: str, graph: str, like: Tensor) -> str | None:
    """The backend measured fastest for that operation on such a tensor, or None.

    Args:
        op: the operation's name.
        graph: "absorbing" or "uniform".
        like: its first tensor: log scores (B, L, dim), hidden states (B, L, H), whose width then
            stands for the states, or tokens.
    """
    if not like.is_cuda or not MEASURED:
        return None
    key = (_capability(like.device.index), op, graph, str(like.dtype).removeprefix("torch."))
    states = like.shape[-1]
    fits = (row for row in MEASURED if row[:4] == key and row.least <= states)
    return next((row.backend for row in fits if row.most is None or states <= row.most), None)


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
