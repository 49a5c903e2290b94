"""Score entropy of a block of a linear head's output that is never stored: one program per tile.

    sums      a * sum exp(f_y), over the states y != x_t of the block
    gradient  grad_scale * a * exp(f_y) - b - c * [y = x_0], 0 at y = x_t; its sums over the rows

Here b and c include the gradient's scale. A program forms a tile of f = hidden @ weight.T + bias
(``tiles``) in registers, exponentiates it, sums it over the states, and computes its gradient. Only
the gradient is stored, for the two matrix products with it. The sums over states are stored for
each tile of states, and the sums over rows for each tile of rows; the caller adds them in a fixed
order.

The loss also needs f at x_0 and, for the uniform graph, the sum of f over y != x_t, which is linear
in the weights. These are dot products of a row, computed by a small kernel of its own, because the
tile kernel would spill registers with them.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.tiles import Operands, exp_of, halves, origin, row_dot, scores

#: States of a tile whose exponentials and gradient are in registers at a time.
PIECE = 32
DOT_DEPTH = tl.constexpr(256)


@triton.jit
def _piece(
    f, left, rows, shift, current, clean, grad_scale, less_b, less_c, gradient, columns, stride_g,
    UNIFORM: tl.constexpr, WITH_GRAD: tl.constexpr, HALF: tl.constexpr, DOT_FP32: tl.constexpr,
):  # fmt: skip
    """Sums of a * exp(f) over ``left`` states; stores the gradient and its sums over the rows."""
    y = tl.arange(0, f.shape[1])
    e = exp_of(f, shift[:, None], HALF)
    if UNIFORM:
        stays = y[None, :] == current[:, None]
        e = tl.where(stays, 0.0, e)
    if WITH_GRAD:
        less = tl.where(y[None, :] == clean[:, None], less_c[:, None], less_b[:, None])
        if UNIFORM:
            less = tl.where(stays, 0.0, less)
        g = (grad_scale[:, None] * e - less).to(gradient.dtype.element_ty)
        if g.dtype == tl.bfloat16 and not DOT_FP32:
            # A product with ones on tensor cores adds up the rows faster than shuffles would.
            ones = tl.full([f.shape[0], 16], 1.0, g.dtype)
            sums = tl.max(tl.dot(tl.trans(g), ones), 1)
        else:
            sums = tl.sum(g.to(tl.float32), 0)
        tl.store(columns + y, sums, mask=y < left)
        i = tl.arange(0, f.shape[0])
        inside = (i < rows)[:, None] & (y < left)[None, :]
        tl.store(gradient + (i[:, None] * stride_g + y[None, :]), g, mask=inside)
    return tl.sum(e, 1)


@triton.jit(do_not_specialize=["first"])
def _tiled_score_entropy(
    hidden, weight, bias, live, gradient, columns, sum_exp, x_t, x_0, log_a, grad_scale, gb, gc,
    rows, states, width, stride_h, stride_w, stride_k, stride_g, first,
    UNIFORM: tl.constexpr, WITH_GRAD: tl.constexpr, HALVINGS: tl.constexpr,
    EVEN: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, DOT_FP32: tl.constexpr,
    ROWS: tl.constexpr, STATES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    f = scores(
        hidden, weight, bias, live, rows, states, width, stride_h, stride_w, stride_k,
        EVEN, PRECISION, DOT_FP32, ROWS, STATES, DEPTH,
    )  # fmt: skip
    from_row, from_state = origin(rows, ROWS, STATES)
    i, first = from_row + tl.arange(0, ROWS), first + from_state
    row = i < rows
    shift = tl.load(log_a + i, mask=row, other=-float("inf"))
    zero = tl.zeros([ROWS], tl.float32)
    current, clean, up, less_b, less_c = i, i, zero, zero, zero
    if UNIFORM:
        current = tl.load(x_t + i, mask=row, other=-1).to(tl.int32) - first
    if WITH_GRAD:
        clean = tl.load(x_0 + i, mask=row, other=-1).to(tl.int32) - first
        up = tl.load(grad_scale + i, mask=row, other=0.0)
        less_c = tl.load(gc + i, mask=row, other=0.0)
        if UNIFORM:
            less_b = tl.load(gb + i, mask=row, other=0.0)
            less_c += less_b
    columns += from_row // ROWS * states + from_state
    gradient += from_row.to(tl.int64) * stride_g + from_state
    total = zero
    pieces = halves(f, HALVINGS)
    for n in tl.static_range(len(pieces)):
        at = n * (STATES >> HALVINGS)
        total += _piece(
            pieces[n], states - from_state - at, rows - from_row, shift, current - at, clean - at,
            up, less_b, less_c, gradient + at, columns + at, stride_g,
            UNIFORM, WITH_GRAD, HALF, DOT_FP32,
        )  # fmt: skip
    tl.store(sum_exp + (from_state // STATES * rows + i), total, mask=row)


@triton.jit
def _row_scores(
    hidden, weight, bias, total, x_t, x_0, sum_log, f_x_0, states, width,
    stride_h, stride_w, stride_k, UNIFORM: tl.constexpr,
):  # fmt: skip
    """f at x_0 of one row and, for the uniform graph, the sum of f - bias over all y, minus f at
    x_t.
    """
    row = tl.program_id(0).to(tl.int64)
    h = hidden + row * stride_h
    clean = tl.load(x_0 + row)
    if (clean >= 0) & (clean < states):
        f = row_dot(h, weight, clean * stride_w, stride_k, width, DOT_DEPTH)
        tl.store(f_x_0 + row, (f + tl.load(bias + clean)).to(tl.float64))
    if UNIFORM:
        current = tl.load(x_t + row)
        if (current >= 0) & (current < states):
            f = row_dot(h, weight, current * stride_w, stride_k, width, DOT_DEPTH)
            every = row_dot(h, total, 0, 1, width, DOT_DEPTH)
            tl.store(sum_log + row, (every - f - tl.load(bias + current)).to(tl.float64))


class RowTerms(NamedTuple):
    """The terms of the rows, (R,) each.

    Attributes:
        x_t, x_0: int64 tokens.
        log_a: float32, ln a.
        grad_scale: float32, the factor of a * exp(f) in the gradient.
        gb, gc: float32, the b and c that the gradient subtracts.
    """

    x_t: Tensor
    x_0: Tensor
    log_a: Tensor
    grad_scale: Tensor
    gb: Tensor
    gc: Tensor


def launch(
    operands: Operands,
    terms: RowTerms,
    sum_exp: Tensor,
    gradient: tuple[Tensor, Tensor] | None,
    first: int,
    uniform: bool,
) -> None:
    """Compute the sums of a block, and its gradient if one is given.

    Args:
        terms: x_t and gb are read only if ``uniform``, the others but log_a only with ``gradient``.
        sum_exp: (tiles of states, R) float32 output, sums of a * exp(f) over y != x_t.
        gradient: outputs: (R, n) with contiguous rows, and its sums over rows, (tiles of rows, n)
            float32; or None.
        first: the first state of the block.
    """
    if operands.grid() == (0,):
        return
    into, columns = (sum_exp, sum_exp) if gradient is None else gradient
    _tiled_score_entropy[operands.grid()](
        *operands.tensors(), into, columns, sum_exp, *terms,
        *operands.numbers(), into.stride(0), first,
        UNIFORM=uniform, WITH_GRAD=gradient is not None, HALVINGS=operands.halvings(PIECE),
        **operands.options(),
    )  # fmt: skip


def launch_rows(
    operands: Operands, terms: RowTerms, total: Tensor | None, sums: tuple[Tensor, Tensor]
) -> None:
    """Compute f at x_0 of each row and, for the uniform graph, the sum of f over y != x_t.

    Args:
        operands: with the whole weight, in any dtype.
        total: (H,) float32, the sum of the weights of all states, for the uniform graph; else None.
        sums: (R,) float64 outputs: the sum of f - bias over all y, minus f at x_t (uniform graph
            only), and f at x_0. Not written where x_t or x_0 is not a state.
    """
    if len(operands.hidden) == 0:
        return
    hidden, weight, bias, _ = operands
    _row_scores[(len(hidden),)](
        hidden, weight, bias, bias if total is None else total, terms.x_t, terms.x_0, *sums,
        *operands.numbers()[1:], UNIFORM=total is not None, num_warps=2, **settings.COMMON,
    )  # fmt: skip
