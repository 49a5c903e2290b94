"""Score entropy of one block of a linear head's output, in place.

    sums      a * sum exp(f_y) and sum f_y, over the states y != x_t of the block
    gradient  grad_scale * a * exp(f_y) - b - c * [y = x_0], 0 at y = x_t; its sums over the rows

Here b and c include the gradient's scale. The caller computes the matrix products: the one that
gives the block of scores, and those with its gradient. A program handles a tile: some rows and
neighbouring states. It loops over its rows and keeps the sums over rows in registers, so that the
gradient is not read again to add it up. It writes a partial sum for every state of its tile and for
every row. `launch_sums` adds these in a fixed order, so that results repeat bit by bit. ln a is
added inside the exponential, so that it overflows only where the loss does (with float32 operands,
at 2^127.5).

The stride of the rows of scores is a multiple of a tile, so every load and store is 16 bytes wide.
This also holds in the last block: columns beyond its states are read and ignored. The gradient may
overwrite the block, so a launch must not be repeated, for example to time it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.rows import LOG2_E, exponential


class BlockTile(NamedTuple):
    """The tile of a program: its states, the rows read at a time, all its rows, and its warps."""

    states: int
    rows: int
    group: int
    warps: int


#: Bytes of a score -> tile. A row of a tile is one 16-byte vector for each thread of a warp, so
#: that one warp adds up a row. The fastest of nine for 16 bits on an H200.
TABLE: dict[int, BlockTile] = {2: BlockTile(256, 8, 128, 4), 4: BlockTile(128, 8, 128, 4)}
#: Rows or states whose partial sums one program of `launch_sums` adds, and partial sums that it
#: reads at a time.
ADDED, AT_ONCE = 128, 16


@triton.jit
def _exp(f, c, HALF: tl.constexpr):
    """exp(f + c). HALF (16-bit operands): tl.exp2 is accurate enough, and c is times log2 e."""
    if HALF:
        e = tl.exp2(f * LOG2_E + c)
    else:
        e = exponential(f + c)
    return e


class Pointers(NamedTuple):
    """What the kernel reads (scores, bias, tokens and terms of rows) and writes."""

    scores: Any
    bias: Any
    gradient: Any
    tokens: Any
    terms: Any
    row_sums: Any
    columns: Any


class Options(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        uniform: graph; else absorbing.
        with_x_t: x_t may be among the states of the block, and is then left out.
        with_bias: whether a bias is given.
        with_grad, with_columns: whether the gradient, and its sums over rows, are computed.
        half: operands of 16 bits.
        tile_warps, tile_group, tile_rows, tile_states: those of the ``BlockTile``.
    """

    uniform: bool
    with_x_t: bool
    with_bias: bool
    with_grad: bool
    with_columns: bool
    half: bool
    tile_warps: int
    tile_group: int
    tile_rows: int
    tile_states: int


@triton.jit(do_not_specialize=["rows", "states", "first"])
def _linear_score_entropy(pointers, rows, states, stride, first, OPTIONS: tl.constexpr):
    scores, bias, gradient, tokens, terms, row_sums, columns = pointers
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
    inside = y < states
    b = tl.zeros([TILE], tl.float32)
    if OPTIONS.with_bias:
        b = tl.load(bias + y, mask=inside, other=0.0).to(tl.float32)
    # The bias as the argument of the exponential, which is 0 for columns beyond the last state.
    shift = tl.where(inside, b * LOG2_E if HALF else b, -float("inf"))[None, :]
    b, inside, state = b[None, :], inside[None, :], (first + y)[None, :]
    begin = (group * GROUP).to(tl.int64) * stride + tile * TILE
    at = tl.arange(0, ROWS)[:, None] * stride + n[None, :]
    total = tl.zeros([WARPS, TILE], tl.float32)
    for _ in range(0, tl.minimum(GROUP, rows - group * GROUP), ROWS):
        live = i < rows
        f = tl.load(scores + begin + at, mask=live[:, None], other=0.0).to(tl.float32)
        f = tl.where(inside, f, 0.0)  # memory beyond the last state may hold NaN
        log_a = tl.load(terms + i, mask=live, other=-float("inf"))
        e = _exp(f, shift + (log_a * LOG2_E if HALF else log_a)[:, None], HALF)
        into = row_sums + tile * rows + i[:, None]
        if OPTIONS.with_x_t:
            current = tl.load(tokens + i, mask=live, other=-1)
            stays = state == current[:, None]
            e = tl.where(stays, 0.0, e)
        if OPTIONS.uniform:
            logs = tl.sum(tl.where(stays, 0.0, f + b), 1, keep_dims=True)
            tl.store(into + across * rows, logs, mask=live[:, None])
        tl.store(into, tl.sum(e, 1, keep_dims=True), mask=live[:, None])
        if OPTIONS.with_grad:
            scale = tl.load(terms + rows + i, mask=live, other=0.0)
            less = tl.load(terms + 3 * rows + i, mask=live, other=0.0)
            clean = tl.load(tokens + rows + i, mask=live, other=-1)
            g = scale[:, None] * e
            less = tl.where(state == clean[:, None], less[:, None], 0.0)
            if OPTIONS.uniform:
                less += tl.load(terms + 2 * rows + i, mask=live, other=0.0)[:, None]
                less = tl.where(stays, 0.0, less)
            g -= less
            to = gradient + begin + at
            tl.store(to, g.to(gradient.dtype.element_ty), mask=live[:, None])
            if OPTIONS.with_columns:  # one thread adds its own rows
                total += tl.sum(tl.reshape(g, [ROWS // WARPS, WARPS, TILE]), 0)
        i += ROWS
        begin += ROWS * stride.to(tl.int64)
    if OPTIONS.with_columns:  # ``columns`` has space for whole tiles
        tl.store(columns + group * stride + y, tl.sum(total, 0))


class SumPointers(NamedTuple):
    """The partial sums that ``_add_sums`` reads, and the sums that it writes."""

    row_sums: Any
    columns: Any
    sums: Any
    bias_gradient: Any


# Numbers outside a tuple, so that they do not cause another compilation: see ``score_entropy``.
@triton.jit(
    do_not_specialize=[
        "rows", "states", "last", "stride", "across", "down", "old_rows", "old_states"
    ]
)  # fmt: skip
def _add_sums(
    pointers, rows, states, last, stride, across, down, old_rows, old_states,
    KINDS: tl.constexpr, COUNT: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Adds up partial sums. The first programs do so for rows, the others for states.

    The first ``old_rows`` rows and ``old_states`` states already have a sum, which is added to.
    """
    row_sums, columns, sums, bias_gradient = pointers
    program = tl.program_id(0)
    of_rows = tl.cdiv(rows, COUNT)
    lane, part = tl.arange(0, COUNT), tl.arange(0, AT_ONCE)[:, None]
    if program < of_rows:
        i = program * COUNT + lane
        for kind in tl.static_range(KINDS):
            total = tl.load(sums + kind * rows + i, mask=i < old_rows, other=0.0)
            for begin in range(0, across, AT_ONCE):
                tile = begin + part
                at = (kind * across + tile) * rows + i[None, :]
                x = tl.load(row_sums + at, mask=(tile < across) & (i < rows)[None, :], other=0.0)
                total += tl.sum(x.to(tl.float64), 0)
            tl.store(sums + kind * rows + i, total, mask=i < rows)
    else:
        y = (program - of_rows) * COUNT + lane
        total = tl.load(bias_gradient + y, mask=y < old_states, other=0.0)
        total = total.to(tl.float64)
        for begin in range(0, down, AT_ONCE):
            group = begin + part
            at = group * stride + y[None, :]
            x = tl.load(columns + at, mask=(group < down) & (y < states)[None, :], other=0.0)
            total += tl.sum(x.to(tl.float64), 0)
        tl.store(bias_gradient + y, total.to(tl.float32), mask=y < last)


class PartialSums(NamedTuple):
    """Memory for the partial sums of a block, float32.

    Attributes:
        rows: (1 or 2, tiles, R): the sums of a * exp(f), and for the uniform graph of f. A block
            with fewer tiles uses the beginning of this memory.
        columns: (groups of rows, stride of a row of scores): sums of the gradient over rows; or
            None.
        tile: how the kernel divides the block.
    """

    rows: Tensor
    columns: Tensor | None
    tile: BlockTile

    @classmethod
    def like(cls, scores: Tensor, uniform: bool, columns: bool) -> "PartialSums":
        """For blocks in the memory of ``scores``, (R, states of the largest block)."""
        tile, (count, states) = TABLE[scores.element_size()], scores.shape
        shape = 1 + uniform, triton.cdiv(states, tile.states), count
        groups = triton.cdiv(count, tile.group), states
        return cls(
            scores.new_empty(shape, dtype=torch.float32),
            scores.new_empty(groups, dtype=torch.float32) if columns else None,
            tile,
        )

    def across(self, states: int) -> int:
        """Number of tiles across a block of that many states."""
        return triton.cdiv(states, self.tile.states)


#: (uniform graph, sums over the rows) -> registers of a thread: with fewer, 16-bit scores spill.
#: With 80, six programs of four warps fit onto a multiprocessor; with 96 five, with 112 or 128
#: four.
REGISTERS = {(False, True): 80, (False, False): 96, (True, True): 112, (True, False): 128}


def options(
    score_bytes: int, gradient_bytes: int, uniform: bool, columns: bool
) -> dict[str, int | bool]:
    """Compile options of the kernel; on NVIDIA GPUs with a limit of registers."""
    limit = REGISTERS[uniform, columns]
    if score_bytes == 4:
        limit = 96 if uniform else 80
    elif gradient_bytes == 4:  # of float16
        limit = 128
    limited = {} if torch.version.hip else {"maxnreg": limit}
    return {"num_warps": TABLE[score_bytes].warps, "enable_fp_fusion": True, **limited}


def launch(
    scores: Tensor,
    bias: Tensor | None,
    gradient: Tensor | None,
    rows: tuple[Tensor, Tensor],
    sums: PartialSums,
    first: int,
    with_x_t: bool,
) -> None:
    """Compute the partial sums of a block, and its gradient if one is given.

    Args:
        scores: (R, n); the stride of its rows is a multiple of 256.
        bias: (n,) bias of these states, contiguous, in any dtype; or None.
        gradient: output in the layout of the scores, may be the same memory; or None.
        rows: x_t and x_0 (2, R) int32, and the terms of `head_rows.launch_gather`.
        first: the state of column 0.
        with_x_t: whether the block may have the x_t of a row: always for the uniform graph; else
            if it has the mask.
    """
    count, states = scores.shape
    if count == 0 or states == 0:
        return
    tile, uniform = sums.tile, len(sums.rows) == 2
    unused = sums.rows  # a pointer that is never read
    into = scores if gradient is None else gradient
    _linear_score_entropy[(sums.across(states) * triton.cdiv(count, tile.group),)](
        Pointers(
            scores, unused if bias is None else bias, into, *rows,
            sums.rows, unused if sums.columns is None else sums.columns,
        ),
        count, states, scores.stride(0), first,
        OPTIONS=Options(
            uniform, with_x_t, bias is not None, gradient is not None, sums.columns is not None,
            scores.element_size() == 2, tile.warps, tile.group, tile.rows, tile.states,
        ),
        **options(scores.element_size(), into.element_size(), uniform, sums.columns is not None),
    )  # fmt: skip


def launch_sums(
    partial: PartialSums,
    sums: Tensor,
    bias_gradient: Tensor | None,
    states: int,
    later: bool,
    again: bool,
) -> None:
    """Add up the partial sums of a block, always in the same order.

    Args:
        sums: (1 or 2, R) float64 sums of the rows; overwritten in the first block of the
            vocabulary, added to in ``later`` ones.
        bias_gradient: float32, from the block's first state on; overwritten for the first rows,
            added to if further rows follow (``again``). Entries beyond the block's states get 0.
    """
    kinds, _, rows = partial.rows.shape
    columns, into = partial.rows[0], sums
    last, of_states = 0, 0
    if partial.columns is not None and bias_gradient is not None:
        columns, into, last = partial.columns, bias_gradient, len(bias_gradient)
        of_states = triton.cdiv(last, ADDED)
    _add_sums[(triton.cdiv(rows, ADDED) + of_states,)](
        SumPointers(partial.rows, columns, sums, into), rows, states, last, columns.stride(0),
        partial.across(states), len(columns), rows if later else 0, states if again else 0,
        KINDS=kinds, COUNT=ADDED, AT_ONCE=AT_ONCE, num_warps=4,
    )  # fmt: skip
