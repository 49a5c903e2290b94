"""Sums of a function over touched rows, and their gradient: one program per position, one pass.

    total       = sum over y != x_t of f(z_y), z_y = a * exp(l_y) + b, with f given by name (TERMS)
    gradient_y  = grad_scale * f'(z_y) * a * exp(l_y) + grad_x_0 * [y = x_0], 0 at y = x_t

grad_scale and grad_x_0 are the gradients of the total and of l at x_0. ``rows`` describes how a row
is divided: an edge before the first aligned state, whole blocks, and a tail. A row whose sums
overflow or underflow in float32 is read a second time in float64. A position with a = 0 does not
read its row; its gradient row is filled with zeros.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.rows import (
    EXACT_BLOCK,
    Row,
    exponential,
    fill_zero,
    row_pass,
    score_alignment,
    strided_pass,
)

TERMS = {"affine": 0, "square": 1, "log": 2}
INFINITY = tl.constexpr(float("inf"))
#: A float32 sum below this is computed again in float64, because its terms may have underflowed.
LEAST = tl.constexpr(1e-30)


@triton.jit
def _term(z, TERM: tl.constexpr):
    """f(z) and its derivative."""
    if TERM == 0:
        value, slope = z, tl.full(z.shape, 1.0, z.dtype)
    elif TERM == 1:
        value, slope = z * z, 2 * z
    else:
        value, slope = tl.log(z), 1 / z
    return value, slope


@triton.jit
def _summands(scores, is_x_t, is_x_0, terms, HAS_TOKENS: tl.constexpr, WITH_GRAD: tl.constexpr):
    """f and f' of a * exp(l) + b, 0 at x_t, and the gradient in l."""
    a, b, grad_scale, grad_x_0, TERM = terms
    if a.dtype == tl.float64:
        scores = scores.to(tl.float64)
    moving = a * exponential(scores)
    value, slope = _term(moving + b, TERM)
    g = value
    if WITH_GRAD:
        g = tl.where(grad_scale != 0, grad_scale * slope * moving, 0.0)
    if HAS_TOKENS:
        if WITH_GRAD:
            g = tl.where(is_x_t, 0.0, g + tl.where(is_x_0, grad_x_0, 0.0))
        value, slope = tl.where(is_x_t, 0.0, value), tl.where(is_x_t, 0.0, slope)
    return value, slope, g


class Inputs(NamedTuple):
    """Pointers to what the kernel reads; the last two are the gradients of its outputs."""

    log_score: Any
    x_t: Any
    x_0: Any
    a: Any
    b: Any
    up_total: Any
    up_x_0: Any


class Outputs(NamedTuple):
    """Pointers to what the kernel writes.

    Attributes:
        first: the totals, or with a gradient that in b.
        log_x_0: l at x_0; only without a gradient.
        grad: the gradient in the scores.
    """

    first: Any
    log_x_0: Any
    grad: Any


class Options(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        term: the number of f in TERMS.
        with_grad: the gradient is computed, not the sums.
        with_second: whether the sum of f' is needed.
        contiguous: the scores of a row.
        score_alignment: see ``rows.score_alignment``.
    """

    term: int
    with_grad: bool
    with_second: bool
    contiguous: bool
    score_alignment: int


# Numbers outside a tuple, so that they do not cause another compilation: see ``score_entropy``.
@triton.jit(
    do_not_specialize=[
        "length", "dim", "mask", "stride_b", "stride_l", "stride_y", "grad_stride_b",
        "grad_stride_l",
    ]
)  # fmt: skip
def _row_sums(
    inputs, outputs, length, dim, mask,
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l,
    OPTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    WITH_GRAD: tl.constexpr = OPTIONS.with_grad
    row = tl.program_id(0).to(tl.int64)
    i_b, i_l = row // length, row % length
    current, clean = tl.load(inputs.x_t + row), tl.load(inputs.x_0 + row)
    scale, shift = tl.load(inputs.a + row), tl.load(inputs.b + row)
    valid = (current >= 0) & (current < dim) & (clean >= 0) & (clean < dim)
    valid = valid & (clean != mask) & (tl.abs(scale) < INFINITY)
    grad_row = outputs.grad + (i_b * grad_stride_b + i_l * grad_stride_l)
    out = tl.where(valid | WITH_GRAD, 0.0, float("nan")).to(tl.float64)
    picked = out
    if valid & (scale != 0):
        state, target = current.to(tl.int32), clean.to(tl.int32)
        scores = inputs.log_score + (i_b * stride_b + i_l * stride_l)
        of_row = Row(scores, grad_row, stride_y, dim, state, target)
        grad_scale, grad_x_0 = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        if WITH_GRAD:
            grad_scale, grad_x_0 = tl.load(inputs.up_total + row), tl.load(inputs.up_x_0 + row)
        TERM: tl.constexpr = OPTIONS.term
        fp32_terms = (
            scale.to(tl.float32), shift.to(tl.float32),
            grad_scale.to(tl.float32), grad_x_0.to(tl.float32), TERM,
        )  # fmt: skip
        if OPTIONS.contiguous:
            total, slopes = row_pass(of_row, fp32_terms, _summands, OPTIONS, BLOCK)
        else:
            total, slopes = strided_pass(of_row, fp32_terms, _summands, WITH_GRAD, BLOCK.unit)
        sufficed = (tl.abs(total) > LEAST) & (tl.abs(total) < INFINITY)
        sufficed = sufficed & (tl.abs(slopes) < INFINITY)
        if sufficed == 0:  # float32 overflowed or underflowed; the true value may not
            terms = (scale, shift, grad_scale, grad_x_0, TERM)
            total, slopes = strided_pass(of_row, terms, _summands, WITH_GRAD, EXACT_BLOCK)
        if WITH_GRAD:
            out = tl.where(grad_scale != 0, grad_scale * slopes, 0.0)
        else:
            out = total
            here = tl.load(scores + clean * stride_y).to(tl.float64)
            picked = tl.where(clean == current, 0.0, here)
    else:
        if WITH_GRAD:
            fill_zero(grad_row, dim, BLOCK.vec, BLOCK.unit)
    tl.store(outputs.first + row, out)
    if not WITH_GRAD:
        tl.store(outputs.log_x_0 + row, picked)


def launch(
    log_score: Tensor,
    sums: Any,
    upstream: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor],
) -> None:
    """Compute the sums, or their gradient.

    Args:
        log_score: (B, L, dim) in any layout.
        sums: x_t, x_0, a and b, (B, L), contiguous; term and mask_index.
        upstream: gradients of the total and of l at x_0, (B, L) float64; None: no gradient.
        out: the totals and l at x_0, (B, L) float64. With ``upstream``: the gradient in b, (B, L)
            float64, and the gradient in the scores, (B, L, dim) of unit stride over states.
    """
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    grad = None if upstream is None else out[1]
    unused = out[0]  # a pointer that is never read
    vec = 16 // log_score.element_size()
    kind = "row_sums" if grad is None else "row_sums_gradient"
    plan = settings.plan(kind, vec, dim, 1, _row_sums, log_score.dtype)
    options = Options(
        TERMS[sums.term],
        with_grad=grad is not None,
        with_second=grad is not None or sums.term != "affine",  # the slopes of f(z) = z are all 1
        contiguous=log_score.stride(2) == 1,
        score_alignment=score_alignment(log_score, grad, vec),
    )
    plan.kernel[(batch * length,)](
        Inputs(
            log_score, sums.x_t, sums.x_0, sums.a, sums.b,
            *((unused, unused) if upstream is None else upstream),
        ),
        Outputs(out[0], out[1] if grad is None else unused, unused if grad is None else grad),
        length, dim, sums.mask_index, *log_score.stride(),
        *((0, 0) if grad is None else grad.stride()[:2]), OPTIONS=options, **plan.options,
    )  # fmt: skip
