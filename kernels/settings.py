"""Launch settings of the row kernels, by kind of call and bytes per score.

They were derived from the machine code for sm_90 and then timed against every other combination on
an H200 (docs/performance.md). Each thread has four 16-byte loads in flight. The limit on registers
is the lowest without spills: it decides how many programs a multiprocessor runs at a time, and so
how many bytes are in flight. The gradients of the absorbing graph, which mostly write, are faster
with fewer programs. Programs have four warps, because a program waits during its own reductions;
for short rows they have one warp.

SEDD_FAST_AUTOTUNE=1 times the candidates instead, once for each kind of call, on the tensors of the
first call. This synchronises the device, so it must not happen during CUDA graph capture. Timing
runs a kernel many times, so only kernels that never read their output use these settings. The
in-place kernel of a head's block has its own settings (``linear_score_entropy``).
"""

import functools
import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

#: Options of all launches. Multiplications and additions are fused, as in the C++ and CUDA kernels.
COMMON: dict[str, Any] = {"enable_fp_fusion": True}


class LaunchSettings(NamedTuple):
    """The settings of one kind of call.

    Attributes:
        vectors: of 16 bytes, that a thread loads before it uses the first.
        warps: of a program.
        registers: limit for a thread. Given one, ptxas does not spill registers in order to fit one
            more program onto a multiprocessor.
    """

    vectors: int
    warps: int
    registers: int


#: Kind of call -> bytes per score -> settings for rows of more than SHORT states.
#: With 64 registers, a multiprocessor runs 8 programs of 4 warps; with 72, 80, 96: 7, 6, 5.
TABLE: dict[str, dict[int, LaunchSettings]] = {
    "absorbing_loss": {2: LaunchSettings(4, 4, 64), 4: LaunchSettings(4, 4, 72)},
    "absorbing_gradient": {2: LaunchSettings(4, 4, 128), 4: LaunchSettings(4, 8, 128)},
    "uniform_loss": {2: LaunchSettings(4, 4, 80), 4: LaunchSettings(4, 4, 80)},
    "uniform_gradient": {2: LaunchSettings(4, 4, 80), 4: LaunchSettings(4, 8, 80)},
    "row_sums": {2: LaunchSettings(4, 4, 80), 4: LaunchSettings(4, 4, 80)},
    "row_sums_gradient": {2: LaunchSettings(4, 4, 80), 4: LaunchSettings(4, 4, 80)},
    "absorbing_step": {2: LaunchSettings(4, 4, 64), 4: LaunchSettings(4, 4, 64)},
    "scaled_step": {2: LaunchSettings(4, 4, 72), 4: LaunchSettings(4, 4, 72)},
    "uniform_step": {2: LaunchSettings(4, 4, 80), 4: LaunchSettings(4, 4, 80)},
    "filtered_step": {2: LaunchSettings(4, 4, 128), 4: LaunchSettings(4, 4, 128)},
}
#: For rows of at most so many states, a program has one warp, and a thread loads one vector.
SHORT = 1024
#: Additional registers for a loop over several rows.
LOOP = 32
#: (vectors, warps) among which SEDD_FAST_AUTOTUNE=1 chooses.
CANDIDATES = tuple((vectors, warps) for vectors in (1, 2, 4) for warps in (2, 4, 8))


class Block(NamedTuple):
    """How a row kernel reads a row.

    Attributes:
        states: that a program loads at a time.
        unit: states of one vector per thread.
        vec: states in a vector of 16 bytes.
    """

    states: int
    unit: int
    vec: int


class LaunchPlan(NamedTuple):
    """How a kernel is launched: the kernel or its autotuned form, and the options of the launch."""

    kernel: Any
    options: dict[str, Any]
    smallest: int  # states of the smallest possible block


def plan(
    kind: str, vec: int, states: int, rows: int, kernel: Any, dtype: torch.dtype
) -> LaunchPlan:
    """The settings of TABLE for a call, or the autotuned kernel with SEDD_FAST_AUTOTUNE=1.

    Args:
        kind: a key of TABLE.
        vec: states in a vector of 16 bytes.
        states: of a row.
        rows: that one program processes.
        kernel: takes a ``Block`` as its argument BLOCK.
        dtype: of the scores.
    """
    chosen = TABLE[kind][16 // vec]
    if states <= SHORT:
        chosen = chosen._replace(vectors=1, warps=1)
    options = _options(chosen, vec, rows > 1, counted())
    if os.environ.get("SEDD_FAST_AUTOTUNE", "0") != "1":
        return LaunchPlan(kernel, options, options["BLOCK"].states)
    smallest = min(block(*candidate, vec).states for candidate in CANDIDATES)
    rest = {name: value for name, value in options.items() if name not in ("BLOCK", "num_warps")}
    return LaunchPlan(autotuned(kernel, dtype, vec), rest, smallest)


@functools.cache
def _options(chosen: LaunchSettings, vec: int, several: bool, counted: bool) -> dict[str, Any]:
    """The options of a launch with those settings; ``several``: a program has several rows."""
    limit = chosen.registers + LOOP * several if counted else 128
    limited = {} if torch.version.hip else {"maxnreg": limit}  # AMD's compiler has no limit
    made = block(chosen.vectors, chosen.warps, vec)
    return {"BLOCK": made, "num_warps": chosen.warps, **COMMON, **limited}


def block(vectors: int, warps: int, vec: int) -> Block:
    """The block in which each thread has that many vectors."""
    unit = 32 * warps * vec
    return Block(vectors * unit, unit, vec)


@functools.cache
def counted() -> bool:
    """Whether the register limits of TABLE apply to this GPU (sm_80 to sm_90); newer ones spill."""
    return not torch.cuda.is_available() or torch.cuda.get_device_capability() < (10, 0)


@functools.cache
def autotuned(kernel: Any, dtype: torch.dtype, vec: int) -> Any:
    """The kernel with block and warps chosen by timing, for scores of that dtype.

    They are chosen for each new value of its arguments ``dim`` and OPTIONS. The kernel must give
    the same result when it runs again on the same tensors.
    """
    configs = [
        triton.Config({"BLOCK": block(vectors, warps, vec)}, num_warps=warps)
        for vectors, warps in CANDIDATES
    ]
    return triton.autotune(configs, key=["dim", "OPTIONS"])(kernel)


#: Programs that a multiprocessor runs at a time, and the least number of programs that should
#: follow each other in each of these slots, so that slots with many touched rows do not finish
#: late.
RESIDENT, TURNS = 8, 8


def rows_per_program(rows: int, like: Tensor, sparse: bool) -> int:
    """Rows that one program processes: more than one where many rows cost almost nothing.

    ``sparse``: rows may not be touched; a program for such a row only starts and ends. If there are
    more than TURNS rows for each slot of the GPU, a program processes several, but few enough that
    each slot still runs TURNS programs.
    """
    if not sparse:
        return 1
    slots = RESIDENT * multiprocessors(like.device)
    return min(16, max(1, rows // (TURNS * slots)))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; for other devices, that of an H100 or H200."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
