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

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.tiles import Operands, exp_of, halves, origin, row_dot, scores

#: States of a tile whose exponentials and gradient are in registers at a time.
PIECE = 32
DOT_DEPTH = tl.constexpr(256)


class PieceTerms(NamedTuple):
    """The rows' terms of a piece, one for each row: ln a, tokens counted from the first state of
    the piece, the factor of a * exp(f) in the gradient, and what the gradient subtracts: b, and
    b + c at x_0.
    """

    log_a: Any
    x_t: Any
    x_0: Any
    grad_scale: Any
    less_b: Any
    less_c: Any


class Gradient(NamedTuple):
    """Pointers to the gradient and to its sums over the rows; the stride of its rows."""

    grad: Any
    columns: Any
    stride: Any


@triton.jit
def _piece(f, left, rows, terms, gradient, OPTIONS: tl.constexpr):
    """Sums of a * exp(f) over ``left`` states; stores the gradient and its sums over ``rows``."""
    y = tl.arange(0, f.shape[1])
    e = exp_of(f, terms.log_a[:, None], OPTIONS.half)
    if OPTIONS.uniform:
        stays = y[None, :] == terms.x_t[:, None]
        e = tl.where(stays, 0.0, e)
    if OPTIONS.with_grad:
        is_x_0 = y[None, :] == terms.x_0[:, None]
        less = tl.where(is_x_0, terms.less_c[:, None], terms.less_b[:, None])
        if OPTIONS.uniform:
            less = tl.where(stays, 0.0, less)
        g = (terms.grad_scale[:, None] * e - less).to(gradient.grad.dtype.element_ty)
        if g.dtype == tl.bfloat16 and not OPTIONS.dot_fp32:
            # A product with ones on tensor cores adds up the rows faster than shuffles would.
            ones = tl.full([f.shape[0], 16], 1.0, g.dtype)
            sums = tl.max(tl.dot(tl.trans(g), ones), 1)
        else:
            sums = tl.sum(g.to(tl.float32), 0)
        tl.store(gradient.columns + y, sums, mask=y < left)
        i = tl.arange(0, f.shape[0])
        inside = (i < rows)[:, None] & (y < left)[None, :]
        to = gradient.grad + (i[:, None] * gradient.stride + y[None, :])
        tl.store(to, g, mask=inside)
    return tl.sum(e, 1)


class Outputs(NamedTuple):
    """Pointers to the gradient, to its sums over rows, and to the sums of a * exp(f)."""

    gradient: Any
    columns: Any
    sum_exp: Any


class GradientSizes(NamedTuple):
    """``tiles.Sizes``, and the stride of the gradient's rows."""

    rows: Any
    states: Any
    width: Any
    stride_h: Any
    stride_w: Any
    stride_k: Any
    stride_g: Any


@triton.jit(do_not_specialize=["first"])
def _tiled_score_entropy(operands, outputs, terms, sizes, first, OPTIONS: tl.constexpr):
    """``terms``: ``RowTerms``."""
    rows, states = sizes.rows, sizes.states
    ROWS: tl.constexpr = OPTIONS.rows
    STATES: tl.constexpr = OPTIONS.states
    HALVINGS: tl.constexpr = OPTIONS.halvings
    f = scores(operands, sizes, OPTIONS)
    from_row, from_state = origin(rows, ROWS, STATES)
    i, first = from_row + tl.arange(0, ROWS), first + from_state
    row = i < rows
    shift = tl.load(terms.log_a + i, mask=row, other=-float("inf"))
    zero = tl.zeros([ROWS], tl.float32)
    current, clean, up, less_b, less_c = i, i, zero, zero, zero
    if OPTIONS.uniform:
        current = tl.load(terms.x_t + i, mask=row, other=-1).to(tl.int32) - first
    if OPTIONS.with_grad:
        clean = tl.load(terms.x_0 + i, mask=row, other=-1).to(tl.int32) - first
        up = tl.load(terms.grad_scale + i, mask=row, other=0.0)
        less_c = tl.load(terms.gc + i, mask=row, other=0.0)
        if OPTIONS.uniform:
            less_b = tl.load(terms.gb + i, mask=row, other=0.0)
            less_c += less_b
    columns = outputs.columns + (from_row // ROWS * states + from_state)
    gradient = outputs.gradient + (from_row.to(tl.int64) * sizes.stride_g + from_state)
    total = zero
    pieces = halves(f, HALVINGS)
    for n in tl.static_range(len(pieces)):
        at = n * (STATES >> HALVINGS)
        total += _piece(
            pieces[n], states - from_state - at, rows - from_row,
            PieceTerms(shift, current - at, clean - at, up, less_b, less_c),
            Gradient(gradient + at, columns + at, sizes.stride_g), OPTIONS,
        )  # fmt: skip
    tl.store(outputs.sum_exp + (from_state // STATES * rows + i), total, mask=row)


class RowSizes(NamedTuple):
    """The sizes and strides of the products of one row."""

    states: Any
    width: Any
    stride_h: Any
    stride_w: Any
    stride_k: Any


@triton.jit
def _row_scores(operands, tokens, outputs, sizes, UNIFORM: tl.constexpr):
    """f at x_0 of one row and, for the uniform graph, the sum of f - bias over all y, minus f at
    x_t.

    Args:
        operands: hidden states, weight, bias, and the sum of the weight over all states.
        tokens: x_t and x_0.
        outputs: the sum, and f at x_0.
        sizes: ``RowSizes``.
    """
    hidden, weight, bias, total = operands
    x_t, x_0 = tokens
    sum_log, f_x_0 = outputs
    states, width, stride_h, stride_w, stride_k = sizes
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
        operands, Outputs(into, columns, sum_exp), terms,
        GradientSizes(*operands.sizes(), into.stride(0)), first,
        **operands.options(uniform, gradient is not None, PIECE),
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
        (hidden, weight, bias, bias if total is None else total), (terms.x_t, terms.x_0), sums,
        RowSizes(*operands.sizes()[1:]), UNIFORM=total is not None, num_warps=2, **settings.COMMON,
    )  # fmt: skip
