"""Score entropy of a block of a linear head's output that is never stored: one program a tile.

What comes out of a tile's product is exponentiated in registers, summed over the states, and turned
into its gradient, which alone is stored, for the two products that it enters. No program adds to
what another one stored: sums over states are kept for every tile of states and sums over rows for
every tile of rows, to be added by the caller in a fixed order.

Of f itself the loss needs only f at x_0 and, for the uniform graph, the sum over y != x_t, which is
linear in the weights: dot products of a row, in a small kernel of their own. Kept in the tile they
would cost it the registers that make it spill.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.tiles import Operands, exp_of, halves, origin, row_dot, scores

#: States whose exponentials and gradient are in registers at once.
PIECE = 32
DOT_DEPTH = tl.constexpr(256)


@triton.jit
def _piece(
    f, left, rows, shift, now, clean, lift, less_b, less_c, gradient, columns, stride_g,
    UNIFORM: tl.constexpr, WITH_GRAD: tl.constexpr, HALF: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Sums of a * exp(f) over ``left`` states; stores their gradient and its sums over the rows."""
    y = tl.arange(0, f.shape[1])
    e = exp_of(f, shift[:, None], HALF)
    if UNIFORM:
        stays = y[None, :] == now[:, None]
        e = tl.where(stays, 0.0, e)
    if WITH_GRAD:
        less = tl.where(y[None, :] == clean[:, None], less_c[:, None], less_b[:, None])
        if UNIFORM:
            less = tl.where(stays, 0.0, less)
        g = (lift[:, None] * e - less).to(gradient.dtype.element_ty)
        if g.dtype == tl.bfloat16 and not WIDEN:
            # Tensor cores add up the rows; shuffles between threads would cost more.
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
    hidden, weight, bias, live, gradient, columns, sum_exp, x_t, x_0, log_a, lift, gb, gc,
    rows, states, width, stride_h, stride_w, stride_k, stride_g, first,
    UNIFORM: tl.constexpr, WITH_GRAD: tl.constexpr, HALVINGS: tl.constexpr,
    EVEN: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, STATES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    f = scores(
        hidden, weight, bias, live, rows, states, width, stride_h, stride_w, stride_k,
        EVEN, PRECISION, WIDEN, ROWS, STATES, DEPTH,
    )  # fmt: skip
    from_row, from_state = origin(rows, ROWS, STATES)
    i, first = from_row + tl.arange(0, ROWS), first + from_state
    row = i < rows
    shift = tl.load(log_a + i, mask=row, other=-float("inf"))
    zero = tl.zeros([ROWS], tl.float32)
    now, clean, up, less_b, less_c = i, i, zero, zero, zero
    if UNIFORM:
        now = tl.load(x_t + i, mask=row, other=-1).to(tl.int32) - first
    if WITH_GRAD:
        clean = tl.load(x_0 + i, mask=row, other=-1).to(tl.int32) - first
        up = tl.load(lift + i, mask=row, other=0.0)
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
            pieces[n], states - from_state - at, rows - from_row, shift, now - at, clean - at,
            up, less_b, less_c, gradient + at, columns + at, stride_g,
            UNIFORM, WITH_GRAD, HALF, WIDEN,
        )  # fmt: skip
    tl.store(sum_exp + (from_state // STATES * rows + i), total, mask=row)


@triton.jit
def _row_scores(
    hidden, weight, bias, total, x_t, x_0, sum_log, f_x_0, states, width,
    stride_h, stride_w, stride_k, UNIFORM: tl.constexpr,
):  # fmt: skip
    """f at x_0 of one row and, of a uniform graph, the sum of f - bias over y, less f at x_t."""
    row = tl.program_id(0).to(tl.int64)
    h = hidden + row * stride_h
    clean = tl.load(x_0 + row)
    if (clean >= 0) & (clean < states):
        f = row_dot(h, weight, clean * stride_w, stride_k, width, DOT_DEPTH)
        tl.store(f_x_0 + row, (f + tl.load(bias + clean)).to(tl.float64))
    if UNIFORM:
        now = tl.load(x_t + row)
        if (now >= 0) & (now < states):
            f = row_dot(h, weight, now * stride_w, stride_k, width, DOT_DEPTH)
            every = row_dot(h, total, 0, 1, width, DOT_DEPTH)
            tl.store(sum_log + row, (every - f - tl.load(bias + now)).to(tl.float64))


class Terms(NamedTuple):
    """Of the rows (R,): x_t and x_0, int64; ln a, the factor of a * exp(f) in the gradient, and its
    subtrahends b and c, float32.
    """

    x_t: Tensor
    x_0: Tensor
    log_a: Tensor
    lift: Tensor
    gb: Tensor
    gc: Tensor


def launch(
    operands: Operands,
    terms: Terms,
    sum_exp: Tensor,
    gradient: tuple[Tensor, Tensor] | None,
    first: int,
    uniform: bool,
) -> None:
    """Sums of a block, and its gradient where asked for.

    Args:
        terms: x_t and b are read for ``uniform`` alone, what the gradient is made of with one.
        sum_exp: (tiles of states, R) float32, sums of a * exp(f) over y != x_t.
        gradient: (R, n), rows contiguous, and its sums over rows, (tiles of rows, n) float32.
        first: the state of the block's first.
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
    operands: Operands, terms: Terms, total: Tensor | None, sums: tuple[Tensor, Tensor]
) -> None:
    """What the loss needs of f itself, from the whole weight, in any dtype.

    Args:
        total: of the uniform graph: (H,) float32, the sum of the weights of all states.
        sums: (R,) float64, the sum of f - bias over y less f at x_t (of the uniform graph), and f
            at x_0; not written where a token is none.
    """
    if len(operands.hidden) == 0:
        return
    hidden, weight, bias, _ = operands
    _row_scores[(len(hidden),)](
        hidden, weight, bias, bias if total is None else total, terms.x_t, terms.x_0, *sums,
        *operands.numbers()[1:], UNIFORM=total is not None, num_warps=2, **settings.COMMON,
    )  # fmt: skip
