"""Launch settings of the row kernels, by kind of call and bytes of a score.

They follow from the code compiled for sm_90 (docs/performance.md has the counts) and have not been
measured yet. Four 16-byte loads a thread are under way before the first is used. The limit on
registers is the lowest that does not spill; it decides how many programs a multiprocessor runs at
a time, and so how many bytes are under way. Programs are small, four warps, because each waits for
its own reductions; a short row gets one warp.

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
from torch import Tensor

#: Multiplications and additions fuse, as in the C++ and CUDA kernels. Given a bound on registers,
#: ptxas no longer spills one or two of them to fit another program on a multiprocessor.
COMMON: dict[str, Any] = {"enable_fp_fusion": True}


class Settings(NamedTuple):
    """Vectors of 16 bytes that a thread loads before it uses the first, the warps of a program, and
    the most registers of a thread.
    """

    vectors: int
    warps: int
    registers: int


#: Kind of call -> its settings for rows of more than SHORT states, in numbers of 2 and of 4 bytes.
#: 64 registers let 8 programs of 4 warps run on a multiprocessor, 72 let 7, 80 let 6, 96 let 5.
TABLE: dict[str, dict[int, Settings]] = {
    "absorbing_loss": {2: Settings(4, 4, 64), 4: Settings(4, 4, 72)},
    "absorbing_gradient": {2: Settings(4, 4, 64), 4: Settings(4, 4, 72)},
    "uniform_loss": {2: Settings(4, 4, 80), 4: Settings(4, 4, 80)},
    "uniform_gradient": {2: Settings(4, 4, 80), 4: Settings(4, 4, 80)},
    "row_sums": {2: Settings(4, 4, 80), 4: Settings(4, 4, 80)},
    "row_sums_gradient": {2: Settings(4, 4, 80), 4: Settings(4, 4, 80)},
    "absorbing_step": {2: Settings(4, 4, 64), 4: Settings(4, 4, 64)},
    "scaled_step": {2: Settings(4, 4, 72), 4: Settings(4, 4, 72)},
    "uniform_step": {2: Settings(4, 4, 80), 4: Settings(4, 4, 80)},
    "filtered_step": {2: Settings(4, 4, 128), 4: Settings(4, 4, 128)},
}
#: Rows up to this long get one warp, and a vector a thread.
SHORT = 1024
#: What a loop over several rows costs in registers.
LOOP = 32
#: (vectors, warps) that SEDD_FAST_AUTOTUNE=1 times.
CANDIDATES = tuple((vectors, warps) for vectors in (1, 2, 4) for warps in (2, 4, 8))


class Plan(NamedTuple):
    """How a kernel is launched: itself or its autotuned form, and the options of the launch."""

    kernel: Any
    options: dict[str, Any]
    smallest: int  # states in the smallest block that it may run with


def plan(kind: str, vec: int, states: int, rows: int, kernel: Any, key: tuple[str, ...]) -> Plan:
    """The table's settings for such a call, or a kernel that times the candidates itself.

    Args:
        kind: a key of TABLE.
        vec: states in a vector of 16 bytes.
        rows: that a program takes in turn.
        key: the kernel's arguments on which a timed choice depends.
    """
    chosen = TABLE[kind][16 // vec]
    if states <= SHORT:
        chosen = chosen._replace(vectors=1, warps=1)
    options = _options(chosen, vec, rows > 1, counted())
    if os.environ.get("SEDD_FAST_AUTOTUNE", "0") != "1":
        return Plan(kernel, options, options["BLOCK"])
    timed = ("BLOCK", "UNIT", "num_warps")
    smallest = min(sizes(*candidate, vec)["BLOCK"] for candidate in CANDIDATES)
    rest = {name: value for name, value in options.items() if name not in timed}
    return Plan(autotuned(kernel, key, vec), rest, smallest)


@functools.cache
def _options(chosen: Settings, vec: int, several: bool, counted: bool) -> dict[str, Any]:
    """The options of a launch with those settings, of one row or ``several`` a program."""
    limit = chosen.registers + LOOP * several if counted else 128
    limited = {} if torch.version.hip else {"maxnreg": limit}  # AMD's compiler has no limit
    made = sizes(chosen.vectors, chosen.warps, vec)
    return {**made, "num_warps": chosen.warps, **COMMON, **limited}


def sizes(vectors: int, warps: int, vec: int) -> dict[str, int]:
    """States that a program loads at once, and with one vector a thread."""
    unit = 32 * warps * vec
    return {"BLOCK": vectors * unit, "UNIT": unit}


@functools.cache
def counted() -> bool:
    """Whether the table's limits hold for the GPU at hand, sm_80 to sm_90: newer ones spill."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() < (10, 0)


@functools.cache
def autotuned(kernel: Any, key: tuple[str, ...], vec: int) -> Any:
    """The kernel, its block and warps chosen by timing whenever an argument in ``key`` is new.

    The kernel must give the same result when it runs again on the same tensors.
    """
    configs = [
        triton.Config(sizes(vectors, warps, vec), num_warps=warps) for vectors, warps in CANDIDATES
    ]
    return triton.autotune(configs, key=list(key))(kernel)


#: Programs of a multiprocessor at a time, and programs after one another on each of those places
#: that even out what rows cost.
RESIDENT, TURNS = 8, 8


def rows_a_program(rows: int, like: Tensor, sparse: bool) -> int:
    """Rows that a program takes in turn: more than one where many rows cost next to nothing.

    A program whose row is not touched only starts and ends. Where there are so many rows that every
    place for a program sees more than TURNS of them, a program takes several rows; few enough that
    the turns even out how many of them are touched.
    """
    if not sparse:
        return 1
    places = RESIDENT * multiprocessors(like.device)
    return min(16, max(1, rows // (TURNS * places)))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; those of an H100 or H200 where there is none."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
