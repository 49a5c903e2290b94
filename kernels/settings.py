"""Launch settings of the row kernels, by (kind of call, bytes of a score, states).

They follow from reasoning and from what compiles without spilling; they have not been measured yet.
A thread loads one or two 16-byte vectors in a trip (more cost registers, and with them the programs
that hide each other's latency); programs are small, four warps, because each waits for its own
reductions; a short row gets one warp.

SEDD_FAST_AUTOTUNE=1 times the candidates instead, once for each kind of call, on the tensors of the
first one (which waits for the GPU, so not while a graph is captured). Only kernels that never read
what they write are launched this way: timing runs a kernel many times. That of a head's block, in
place, has its settings beside it.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import torch
import triton

#: Multiplications and additions fuse, as in the C++ and CUDA kernels. Given a bound on registers,
#: ptxas no longer spills one or two of them to fit another program on a multiprocessor.
COMMON: dict[str, Any] = {"enable_fp_fusion": True}
if torch.version.hip is None:
    COMMON["maxnreg"] = 128


class Settings(NamedTuple):
    """States in a block, and the warps that read it."""

    block: int
    warps: int


#: (kind of call, bytes of a score) -> rows of (most states, settings).
TABLE: dict[tuple[str, int], tuple[tuple[float, Settings], ...]] = {
    ("loss", 2): ((1024, Settings(512, 1)), (float("inf"), Settings(2048, 4))),
    ("loss", 4): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("gradient", 2): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("gradient", 4): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("row_sums", 2): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("row_sums", 4): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("reverse_step", 2): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
    ("reverse_step", 4): ((1024, Settings(256, 1)), (float("inf"), Settings(1024, 4))),
}
CANDIDATES = tuple(
    Settings(block, warps) for block in (512, 1024, 2048, 4096) for warps in (2, 4, 8)
)


class Plan(NamedTuple):
    """How a kernel is launched: itself or its autotuned form, and the options of the launch."""

    kernel: Any
    options: dict[str, Any]
    smallest: int  # states in the smallest block that it may run with


def plan(kind: str, score_bytes: int, states: int, kernel: Any, key: tuple[str, ...]) -> Plan:
    """The table's settings for such a call, or a kernel that times the candidates itself.

    Args:
        kind: "loss" alone, "gradient" with or without it, "reverse_step".
        key: the kernel's arguments on which a timed choice depends.
    """
    if os.environ.get("SEDD_FAST_AUTOTUNE", "0") == "1":
        return Plan(autotuned(kernel, key), COMMON, min(c.block for c in CANDIDATES))
    chosen = next(row for most, row in TABLE[kind, score_bytes] if states <= most)
    options = {"BLOCK": chosen.block, "num_warps": chosen.warps, **COMMON}
    return Plan(kernel, options, chosen.block)


@functools.cache
def autotuned(kernel: Any, key: tuple[str, ...]) -> Any:
    """The kernel, its block and warps chosen by timing whenever an argument in ``key`` is new."""
    configs = [triton.Config({"BLOCK": c.block}, num_warps=c.warps) for c in CANDIDATES]
    return triton.autotune(configs, key=list(key))(kernel)
