"""The softmax of a linear head's output, of one block of states.

    f = block + bias, or softcap * tanh(that / softcap);  -inf where the bias is -inf
    sums      the largest f of a row, and the sum of exp(f - largest); f at the row's target
    gradient  scale * exp(f - log_sum) - weight * [y = target], times the slope of the softcap

The caller computes the matrix products. ``launch_sums`` reads a block, and the sums of all blocks
give log_sum (``softmax_rows``). ``launch_gradient`` overwrites the block by the gradient, whose
sums over the rows it keeps in registers; with scale 1 and no target it makes probabilities.

A program handles a tile of a block, as in ``linear_score_entropy``: the stride of the rows is a
multiple of a tile, so every load and store is 16 bytes wide. Columns beyond the last state are read
and ignored, and get a gradient of 0.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import linear_score_entropy
from sedd_fast.kernels.linear_score_entropy import BlockTile, PartialSums
from sedd_fast.kernels.rows import LOG2_E, exponential

INFINITY = tl.constexpr(float("inf"))
#: Registers of a thread: with 96, five programs of four warps fit onto a multiprocessor.
REGISTERS = 96


@triton.jit
def tanh(x):
    """The hyperbolic tangent, float32."""
    small = tl.abs(x) < 0.3
    z = tl.where(small, x * x, 0.0)
    # To z^4; what is left out is below 1e-7 at 0.3.
    series = z * (-0.05396825397 + z * 0.02186948854)
    series = 1.0 + z * (-0.3333333333 + z * (0.1333333333 + series))
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(small, x * series, tl.where(x < 0, -large, large))


@triton.jit
def capped(f, softcap, SOFTCAP: tl.constexpr):
    """f, or softcap * tanh(f / softcap)."""
    if SOFTCAP:
        f = softcap * tanh(f / softcap)
    return f


@triton.jit
def power(d, HALF: tl.constexpr):
    """exp(d); HALF (16-bit scores): tl.exp2 is accurate enough."""
    if HALF:
        e = tl.exp2(d * LOG2_E)
    else:
        e = exponential(d)
    return e


@triton.jit
def block_bias(bias, y, states, WITH_BIAS: tl.constexpr):
    """The bias of the states y of a block, 0 without one, and which of them can have weight."""
    inside = y < states
    b = tl.zeros(y.shape, tl.float32)
    if WITH_BIAS:
        b = tl.load(bias + y, mask=inside, other=0.0)
        inside = inside & (b != -INFINITY)
        b = tl.where(inside, b, 0.0)
    return b, inside


class Pointers(NamedTuple):
    """What the kernels read (scores, bias, targets and terms of rows) and write.

    Attributes:
        target: (R,) int32, -1 for none.
        terms: (4, R) float32: log_sum, scale, weight, and what float32 leaves of log_sum.
        partial: (2, tiles, R) float32: the largest f of a row and tile, and the sum.
        picked: (R,) float32: f at the target.
        gradient: in the layout of the scores.
        columns: (groups of rows, stride of a row) float32: sums of the gradient.
    """

    scores: Any
    bias: Any
    target: Any
    terms: Any
    partial: Any
    picked: Any
    gradient: Any
    columns: Any


class Options(NamedTuple):
    """What the kernels are compiled for.

    Attributes:
        with_bias: whether a bias is given.
        with_softcap: whether there is a softcap, and with_slope: whether the gradient is multiplied
            by its slope.
        with_target: whether rows have targets.
        with_columns: whether the gradient's sums over rows are computed.
        half: scores of 16 bits.
        tile_warps, tile_group, tile_rows, tile_states: those of the ``BlockTile``.
    """

    with_bias: bool
    with_softcap: bool
    with_slope: bool
    with_target: bool
    with_columns: bool
    half: bool
    tile_warps: int
    tile_group: int
    tile_rows: int
    tile_states: int


@triton.jit(do_not_specialize=["rows", "states", "first", "tiles", "softcap"])
def _softmax_sums(pointers, rows, states, stride, first, tiles, softcap, OPTIONS: tl.constexpr):
    """``tiles``: of all blocks."""
    GROUP: tl.constexpr = OPTIONS.tile_group
    ROWS: tl.constexpr = OPTIONS.tile_rows
    TILE: tl.constexpr = OPTIONS.tile_states
    CAP: tl.constexpr = OPTIONS.with_softcap
    across = tl.cdiv(states, TILE)
    tile, group = tl.program_id(0) % across, tl.program_id(0) // across
    i = group * GROUP + tl.arange(0, ROWS)
    n = tl.arange(0, TILE)
    b, inside = block_bias(pointers.bias, tile * TILE + n, states, OPTIONS.with_bias)
    begin = (group * GROUP).to(tl.int64) * stride + tile * TILE
    at = tl.arange(0, ROWS)[:, None] * stride + n[None, :]
    end = tl.minimum(states - tile * TILE, TILE)
    place = (first // TILE + tile).to(tl.int64) * rows
    for _ in range(0, tl.minimum(GROUP, rows - group * GROUP), ROWS):
        live = i < rows
        f = tl.load(pointers.scores + begin + at, mask=live[:, None], other=0.0).to(tl.float32)
        f = capped(f + b[None, :], softcap, CAP)
        f = tl.where(inside[None, :], f, -INFINITY)
        top = tl.max(f, 1)
        base = tl.where(top == -INFINITY, 0.0, top)
        total = tl.sum(power(f - base[:, None], OPTIONS.half), 1)
        tl.store(pointers.partial + place + i, top, mask=live)
        tl.store(pointers.partial + tiles.to(tl.int64) * rows + place + i, total, mask=live)
        if OPTIONS.with_target:
            clean = tl.load(pointers.target + i, mask=live, other=-1) - first - tile * TILE
            here = (clean >= 0) & (clean < end)
            to = pointers.scores + begin + tl.arange(0, ROWS) * stride + clean
            g = tl.load(to, mask=here, other=0.0).to(tl.float32)
            if OPTIONS.with_bias:
                g += tl.load(pointers.bias + tile * TILE + clean, mask=here, other=0.0)
            g = tl.where(g == -INFINITY, g, capped(g, softcap, CAP))
            tl.store(pointers.picked + i, g, mask=here)
        i += ROWS
        begin += ROWS * stride.to(tl.int64)


@triton.jit(do_not_specialize=["rows", "states", "first", "softcap"])
def _softmax_gradient(pointers, rows, states, stride, first, softcap, OPTIONS: tl.constexpr):
    HALF: tl.constexpr = OPTIONS.half
    WARPS: tl.constexpr = OPTIONS.tile_warps
    GROUP: tl.constexpr = OPTIONS.tile_group
    ROWS: tl.constexpr = OPTIONS.tile_rows
    TILE: tl.constexpr = OPTIONS.tile_states
    across = tl.cdiv(states, TILE)
    tile, group = tl.program_id(0) % across, tl.program_id(0) // across
    i = group * GROUP + tl.arange(0, ROWS)
    n = tl.arange(0, TILE)
    y = tile * TILE + n
    b, inside = block_bias(pointers.bias, y, states, OPTIONS.with_bias)
    b, inside, state = b[None, :], inside[None, :], (first + y)[None, :]
    begin = (group * GROUP).to(tl.int64) * stride + tile * TILE
    at = tl.arange(0, ROWS)[:, None] * stride + n[None, :]
    total = tl.zeros([WARPS, TILE], tl.float32)
    for _ in range(0, tl.minimum(GROUP, rows - group * GROUP), ROWS):
        live = i < rows
        f = tl.load(pointers.scores + begin + at, mask=live[:, None], other=0.0).to(tl.float32)
        # The sums of columns hold rows beyond the last: 0 times exp of a large bias would be NaN.
        log_sum = tl.load(pointers.terms + i, mask=live, other=INFINITY)
        scale = tl.load(pointers.terms + rows + i, mask=live, other=0.0)
        f += b
        if OPTIONS.with_softcap:
            slope = tanh(f / softcap)
            f = softcap * slope
        # Memory beyond the last state may hold NaN.
        f = tl.where(inside, f, -INFINITY)
        f -= log_sum[:, None]
        if not HALF:
            f -= tl.load(pointers.terms + 3 * rows + i, mask=live, other=0.0)[:, None]
        g = scale[:, None] * power(f, HALF)
        if OPTIONS.with_target:
            clean = tl.load(pointers.target + i, mask=live, other=-1)
            weight = tl.load(pointers.terms + 2 * rows + i, mask=live, other=0.0)
            g -= tl.where(state == clean[:, None], weight[:, None], 0.0)
        if OPTIONS.with_slope:
            g = tl.where(inside, g * (1.0 - slope * slope), 0.0)
        to = pointers.gradient + begin + at
        tl.store(to, g.to(pointers.gradient.dtype.element_ty), mask=live[:, None])
        if OPTIONS.with_columns:  # one thread adds its own rows
            total += tl.sum(tl.reshape(g, [ROWS // WARPS, WARPS, TILE]), 0)
        i += ROWS
        begin += ROWS * stride.to(tl.int64)
    if OPTIONS.with_columns:  # ``columns`` has space for whole tiles
        tl.store(pointers.columns + group.to(tl.int64) * stride + y, tl.sum(total, 0))


def tile_of(dtype: torch.dtype) -> BlockTile:
    """The tile of a program for scores of that dtype."""
    return linear_score_entropy.TABLE[dtype.itemsize]


def tiles(states: int, dtype: torch.dtype) -> int:
    """Number of tiles across so many states."""
    return triton.cdiv(states, tile_of(dtype).states)


class Block(NamedTuple):
    """A block of a head's output.

    Attributes:
        scores: (R, n); the stride of its rows is a multiple of a tile, or it is one tile wide.
        bias: (n,) float32, contiguous, or None.
        first: the state of column 0, a multiple of a tile.
        softcap: 0 for none.
    """

    scores: Tensor
    bias: Tensor | None
    first: int
    softcap: float

    def grid(self) -> tuple[int]:
        """One program per tile."""
        rows, states = self.scores.shape
        down = triton.cdiv(rows, tile_of(self.scores.dtype).group)
        return (tiles(states, self.scores.dtype) * down,)

    def numbers(self) -> tuple[int, int, int, int]:
        """Rows, states, stride and first state."""
        return *self.scores.shape, self.scores.stride(0), self.first

    def options(self, slope: bool, target: bool, columns: bool) -> Options:
        """What a kernel is compiled for."""
        tile = tile_of(self.scores.dtype)
        capped, half = self.softcap > 0, self.scores.element_size() == 2
        sizes = tile.warps, tile.group, tile.rows, tile.states
        return Options(
            self.bias is not None, capped, slope and capped, target, columns, half, *sizes
        )

    def launch_options(self, registers: int = REGISTERS) -> dict[str, Any]:
        """Triton's options of a launch; on NVIDIA GPUs with that limit of registers."""
        limited = {} if torch.version.hip else {"maxnreg": registers}
        warps = tile_of(self.scores.dtype).warps
        return {"num_warps": warps, "enable_fp_fusion": True, **limited}


def launch_sums(block: Block, target: Tensor, partial: Tensor, picked: Tensor) -> None:
    """Write the partial sums of a block, and f at the targets that are in it.

    Args:
        target: (R,) int32, -1 for none.
        partial: (2, tiles of all blocks, R) float32; this block's tiles begin at that of its first
            state.
        picked: (R,) float32.
    """
    scores, bias, _, softcap = block
    if 0 in scores.shape:
        return
    none = partial  # a pointer that is never read
    _softmax_sums[block.grid()](
        Pointers(scores, none if bias is None else bias, target, none, partial, picked, none, none),
        *block.numbers(), partial.shape[1], softcap,
        OPTIONS=block.options(False, True, False), **block.launch_options(),
    )  # fmt: skip


def launch_gradient(
    block: Block, target: Tensor | None, terms: Tensor, gradient: Tensor, columns: Tensor | None
) -> None:
    """Write the gradient of a block, or without targets its probabilities.

    Args:
        target: (R,) int32, -1 for none; None: the slope of the softcap is left out, too.
        terms: (4, R) float32, from ``softmax_rows.launch_finish``.
        gradient: output in the layout of the scores, may be the same memory.
        columns: (groups of rows, stride of a row of scores) float32 for sums over rows, or None.
    """
    scores, bias, _, softcap = block
    if 0 in scores.shape:
        return
    none = terms  # a pointer that is never read
    given = target is not None
    _softmax_gradient[block.grid()](
        Pointers(
            scores, none if bias is None else bias, target if given else none, terms, none, none,
            gradient, none if columns is None else columns,
        ),
        *block.numbers(), softcap,
        OPTIONS=block.options(given, given, columns is not None), **block.launch_options(),
    )  # fmt: skip


def launch_columns(columns: Tensor, bias_gradient: Tensor, states: int, again: bool) -> None:
    """Add up the partial sums of a block over its rows, always in the same order.

    Args:
        columns: as written by ``launch_gradient``.
        bias_gradient: float32, from the block's first state on; overwritten, or added to if
            ``again``.
        states: of the block.
    """
    no_rows = columns.new_empty(1, 1, 0)
    partial = PartialSums(no_rows, columns, tile_of(columns.dtype))
    sums = no_rows.new_empty(1, 0, dtype=torch.float64)
    linear_score_entropy.launch_sums(partial, sums, bias_gradient, states, False, again)
