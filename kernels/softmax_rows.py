"""The rows of a head with a softmax: gathered before its products, finished, and scattered after.

    log_sum = ln sum over y of exp(f_y)
    loss    = weight * (log_sum - f_target + z_loss * log_sum^2)

``_gather`` gathers the hidden states and targets of some positions. ``_finish`` adds up the sums of
all blocks (``softmax_blocks``), writes the losses, and prepares the terms of the gradient, or
prepares them from a known log_sum. ``_scatter`` writes the gradients of the hidden states to their
positions.

A row without a position, or of weight 0, counts as hidden states of 0, because a NaN there would
spread through the products. So does one whose target is no state, which a GPU does not check: its
loss is NaN, and its gradient is 0.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.head_rows import DEPTH, ROWS, scatter_rows

#: Rows whose sums one program of ``_finish`` adds up, and sums of each that it reads at a time.
COUNT, AT_ONCE = 32, 16
INFINITY = tl.constexpr(float("inf"))


class Targets(NamedTuple):
    """The loss of every position: (B, L) int64 states and (B, L) float64 weights, contiguous.

    As kernels see it: pointers.
    """

    target: Any
    row_weight: Any


@triton.jit
def _row(index, targets, i, rows, states):
    """Position, whether there is one, target, weight, and whether the target is a state."""
    at = tl.load(index + i, mask=i < rows, other=-1)
    here = at >= 0
    at = tl.maximum(at, 0)
    weight = tl.load(targets.row_weight + at, mask=here, other=0.0)
    target = tl.load(targets.target + at, mask=here & (weight != 0), other=0)
    return at, here, target, weight, (target >= 0) & (target < states)


class GatherOptions(NamedTuple):
    """What ``_gather`` is compiled for: whether there are targets, and the rows, and elements of
    each, that a program copies at a time.
    """

    with_target: bool
    rows: int = ROWS
    depth: int = DEPTH


# Numbers outside a tuple, so that they do not cause another compilation: see ``score_entropy``.
@triton.jit(do_not_specialize=["rows", "length", "states"])
def _gather(
    index, hidden, targets, gathered, out_target, rows, length, states, width, strides,
    OPTIONS: tl.constexpr,
):  # fmt: skip
    """``strides``: those of the hidden states (three)."""
    stride_b, stride_l, stride_h = strides
    ROWS: tl.constexpr = OPTIONS.rows
    DEPTH: tl.constexpr = OPTIONS.depth
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if OPTIONS.with_target:
        at, here, target, weight, valid = _row(index, targets, i, rows, states)
        read = here & valid & (weight != 0)
        tl.store(out_target + i, tl.where(read, target, -1).to(tl.int32), mask=i < rows)
    else:
        at = tl.load(index + i, mask=i < rows, other=-1)
        read = at >= 0
        at = tl.maximum(at, 0)
    source = (at // length * stride_b + at % length * stride_l)[:, None]
    into = i.to(tl.int64)[:, None] * width
    for begin in range(0, width, DEPTH):
        k = (begin + tl.arange(0, DEPTH))[None, :]
        part = k < width
        h = tl.load(hidden + source + k * stride_h, mask=read[:, None] & part, other=0.0)
        h = h.to(gathered.dtype.element_ty)
        tl.store(gathered + into + k, h, mask=(i < rows)[:, None] & part)


class Finished(NamedTuple):
    """Pointers to what ``_finish`` reads, and to what it writes.

    Attributes:
        partial, picked, bias: those of ``softmax_blocks``.
        log_sum: (B, L) float64; read if it is known, else written.
        loss: (B, L) float32.
        terms: (4, R) float32: log_sum, scale, weight, and what float32 leaves of log_sum.
    """

    partial: Any
    picked: Any
    bias: Any
    log_sum: Any
    loss: Any
    terms: Any


class FinishOptions(NamedTuple):
    """What ``_finish`` is compiled for: whether log_sum is known and there is a bias, and COUNT and
    AT_ONCE.
    """

    known: bool
    with_bias: bool
    count: int = COUNT
    at_once: int = AT_ONCE


@triton.jit
def _log_sum(partial, i, rows, tiles, OPTIONS: tl.constexpr):
    """(COUNT,) float64: ln of the sums of rows i over all tiles."""
    COUNT: tl.constexpr = OPTIONS.count
    AT_ONCE: tl.constexpr = OPTIONS.at_once
    part, live = tl.arange(0, AT_ONCE)[:, None], (i < rows)[None, :]
    top = tl.full([COUNT], -INFINITY, tl.float32)
    for begin in range(0, tiles, AT_ONCE):
        at = (begin + part).to(tl.int64) * rows + i[None, :]
        inside = (begin + part < tiles) & live
        top = tl.maximum(top, tl.max(tl.load(partial + at, mask=inside, other=-INFINITY), 0))
    base = tl.where(top == -INFINITY, 0.0, top).to(tl.float64)
    total = tl.zeros([COUNT], tl.float64)
    for begin in range(0, tiles, AT_ONCE):
        at = (begin + part).to(tl.int64) * rows + i[None, :]
        inside = (begin + part < tiles) & live
        largest = tl.load(partial + at, mask=inside, other=-INFINITY).to(tl.float64)
        sums = tl.load(partial + tiles.to(tl.int64) * rows + at, mask=inside, other=0.0)
        total += tl.sum(sums.to(tl.float64) * tl.exp(largest - base[None, :]), 0)
    none = total == 0.0
    return tl.where(none, -INFINITY, base + tl.log(tl.where(none, 1.0, total)))


@triton.jit(do_not_specialize=["rows", "states", "tiles", "z_loss"])
def _finish(index, targets, finished, rows, states, tiles, z_loss, OPTIONS: tl.constexpr):
    """``tiles``: of all blocks. ``finished``: ``Finished``."""
    COUNT: tl.constexpr = OPTIONS.count
    i = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    at, here, target, weight, valid = _row(index, targets, i, rows, states)
    if OPTIONS.known:
        log_sum = tl.load(finished.log_sum + at, mask=here, other=0.0)
    else:
        log_sum = _log_sum(finished.partial, i, rows, tiles, OPTIONS)
        f = tl.load(finished.picked + i, mask=here & valid & (weight != 0), other=0.0)
        nats = log_sum - f.to(tl.float64) + z_loss * log_sum * log_sum
        loss = tl.where(valid, weight * nats, float("nan"))
        tl.store(finished.loss + at, tl.where(weight != 0, loss, 0.0).to(tl.float32), mask=here)
        tl.store(finished.log_sum + at, log_sum, mask=here)
    if OPTIONS.with_bias:  # a target that has no probability
        b = tl.load(finished.bias + target, mask=valid, other=0.0)
        valid = valid & (b != -INFINITY)
    weight = tl.where(valid, weight, 0.0)
    # Of a row of weight 0 nothing may be NaN.
    scale = tl.where(weight != 0, weight * (1.0 + 2.0 * z_loss * log_sum), 0.0)
    inside, high = i < rows, log_sum.to(tl.float32)
    rest = tl.where(tl.abs(high) < INFINITY, log_sum - high.to(tl.float64), 0.0)
    tl.store(finished.terms + i, tl.where(weight != 0, high, INFINITY), mask=inside)
    tl.store(finished.terms + 3 * rows + i, rest.to(tl.float32), mask=inside)
    tl.store(finished.terms + rows + i, scale.to(tl.float32), mask=inside)
    tl.store(finished.terms + 2 * rows + i, weight.to(tl.float32), mask=inside)


class ScatterOptions(NamedTuple):
    """What ``_scatter`` is compiled for: the rows, and elements of each, copied at a time."""

    rows: int = ROWS
    depth: int = DEPTH


@triton.jit(do_not_specialize=["rows"])
def _scatter(index, total, out, rows, width, OPTIONS: tl.constexpr):
    ROWS: tl.constexpr = OPTIONS.rows
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.load(index + i, mask=i < rows, other=-1)
    scatter_rows(total, out, i, tl.maximum(at, 0), at >= 0, width, OPTIONS.depth)


def launch_gather(
    index: Tensor, hidden: Tensor, states: int, targets: Targets | None, out: tuple[Tensor, Tensor]
) -> None:
    """Gather some rows of a head for its products.

    Args:
        index: (R,) int64 positions, -1 for none.
        hidden: (B, L, H) in any dtype and layout.
        targets: None: rows have none.
        out: hidden states (R, H), 0 where a row is not read, and targets (R,) int32, -1 there.
    """
    given = Targets(index, index) if targets is None else targets  # never read
    _gather[(triton.cdiv(len(index), ROWS),)](
        index, hidden, given, *out, len(index), hidden.shape[1], states, hidden.shape[2],
        hidden.stride(), OPTIONS=GatherOptions(targets is not None), num_warps=4,
    )  # fmt: skip


def launch_finish(
    index: Tensor,
    targets: Targets,
    finished: Finished,
    states: int,
    z_loss: float,
    known: bool,
) -> None:
    """Write the losses, and the terms of the gradient.

    Args:
        index: (R,) int64 positions, -1 for none.
        finished: its bias may be None; if log_sum is ``known``, so may all but the terms.
    """
    none = finished.terms  # a pointer that is never read
    tiles = 0 if known else finished.partial.shape[1]
    given = Finished(*(none if x is None else x for x in finished))
    _finish[(triton.cdiv(len(index), COUNT),)](
        index, targets, given, len(index), states, tiles, z_loss,
        OPTIONS=FinishOptions(known, finished.bias is not None), num_warps=4,
    )  # fmt: skip


def launch_scatter(index: Tensor, total: Tensor, out: Tensor) -> None:
    """Copy rows (R, H) to positions (R,) of ``out`` (B, L, H), all but those at -1; contiguous."""
    _scatter[(triton.cdiv(len(index), ROWS),)](
        index, total, out, len(index), total.shape[1], OPTIONS=ScatterOptions(), num_warps=4
    )
