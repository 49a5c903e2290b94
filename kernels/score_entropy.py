"""Score entropy and its gradient: one program per position, one pass over its row.

    loss        = weight * (a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k), sums over y != x_t
    gradient_y  = grad_scale * (a * exp(l_y) - b - c * [y = x_0]), 0 at y = x_t

``coefficients`` has a, b, c and k; grad_scale is weight * scale * upstream. ``rows`` describes how
a row is divided: an edge before the first aligned state, whole blocks, and a tail. A row whose sum
overflows in float32 is read a second time in float64. A position that is not touched (absorbing
graph and not masked, or weight 0) does not read its row; its gradient row is filled with zeros.

One kernel computes the loss alone, the gradient alone (a backward that recomputes the sums), or
both in one pass.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.batches import numbers, tensors
from sedd_fast.kernels.coefficients import entropy_coefficients
from sedd_fast.kernels.rows import (
    EXACT_BLOCK,
    exponential,
    fill_zero,
    row_pass,
    score_alignment,
    strided_pass,
)


@triton.jit
def _term(scores, is_x_t, is_x_0, terms, HAS_TOKENS: tl.constexpr, WITH_GRAD: tl.constexpr):
    """exp(l) and l, 0 at x_t, and the gradient ga * exp(l) - gb - gc [y = x_0]."""
    ga, gb, gc = terms
    if ga.dtype == tl.float64:
        scores = scores.to(tl.float64)
    e = exponential(scores)
    l = scores.to(e.dtype)
    g = e
    if WITH_GRAD:
        g = ga * e - gb
    if HAS_TOKENS:
        if WITH_GRAD:
            g = tl.where(is_x_t, 0.0, g - tl.where(is_x_0, gc, 0.0))
        e = tl.where(is_x_t, 0.0, e)
        l = tl.where(is_x_t, 0.0, l)
    return e, l, g


@triton.jit
def _position(
    inputs, outputs, numbers, strides, row,
    ABSORBING: tl.constexpr, WEIGHTED: tl.constexpr, UPSTREAM: tl.constexpr,
    WITH_LOSS: tl.constexpr, WITH_GRAD: tl.constexpr, CONTIGUOUS: tl.constexpr,
    SCORE_ALIGNMENT: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of one position."""
    log_score, sigma, x_t, x_0, row_weight, upstream = inputs
    loss, grad = outputs
    scale, length, dim, vocab = numbers
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l = strides
    b, i = row // length, row % length
    noise = tl.load(sigma + b).to(tl.float64)
    current, clean = tl.load(x_t + row), tl.load(x_0 + row)
    weight = tl.full((), 1.0, tl.float64)
    if WEIGHTED:
        weight = tl.load(row_weight + row).to(tl.float64)
    grad_scale = weight * scale
    if UPSTREAM:
        grad_scale = grad_scale * tl.load(upstream + row).to(tl.float64)
    valid = (noise > 0) & (noise < float("inf"))
    valid = valid & (current >= 0) & (current < dim) & (clean >= 0) & (clean < vocab)
    value = tl.where(valid, 0.0, float("nan")).to(tl.float64)
    grad_row = grad + (b * grad_stride_b + i * grad_stride_l)
    touched = valid & (grad_scale != 0)
    if ABSORBING:
        touched = touched & (current == vocab)
    if touched:
        # Tokens are compared with all states of a block: 32 bits take half the instructions of 64.
        state, target = current.to(tl.int32), clean.to(tl.int32)
        LOGS: tl.constexpr = WITH_LOSS and not ABSORBING  # else the sum of l is not needed
        scores = log_score + (b * stride_b + i * stride_l)
        ga, gb, gc = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        if WITH_GRAD:
            a, b_, c, _ = entropy_coefficients(noise, current, clean, vocab, ABSORBING)
            ga, gb, gc = grad_scale * a, grad_scale * b_, grad_scale * c
        fp32_terms = (ga.to(tl.float32), gb.to(tl.float32), gc.to(tl.float32))
        if CONTIGUOUS:
            sum_exp, sum_log = row_pass(
                scores, grad_row, dim, state, target, fp32_terms,
                _term, WITH_GRAD, LOGS, SCORE_ALIGNMENT, VEC, UNIT, BLOCK,
            )  # fmt: skip
        else:
            sum_exp, sum_log = strided_pass(
                scores, grad_row, stride_y, dim, state, target, fp32_terms, _term, WITH_GRAD, UNIT
            )
        if sum_exp == float("inf"):  # float32 overflowed; the true value may be finite
            sum_exp, sum_log = strided_pass(
                scores, grad_row, stride_y, dim, state, target, (ga, gb, gc),
                _term, WITH_GRAD, EXACT_BLOCK,
            )  # fmt: skip
        if WITH_LOSS:  # not before the pass, which then needs sixteen registers less
            a, b_, c, k = entropy_coefficients(noise, current, clean, vocab, ABSORBING)
            l_0 = tl.load(scores + clean * stride_y).to(tl.float64)
            value = k + a * sum_exp
            value -= tl.where(b_ > 0, b_ * sum_log, 0.0)  # 0 * infinity would be NaN
            value -= tl.where(c > 0, c * l_0, 0.0)
            value = value * weight
    else:
        if WITH_GRAD:
            fill_zero(grad_row, dim, VEC, UNIT)
    if WITH_LOSS:
        tl.store(loss + row, value.to(loss.dtype.element_ty))


@triton.jit(
    do_not_specialize=[
        "scale", "length", "dim", "vocab", "stride_b", "stride_l", "stride_y", "grad_stride_b",
        "grad_stride_l", "rows", "rows_each",
    ]
)  # fmt: skip
def _score_entropy(
    log_score, sigma, x_t, x_0, row_weight, upstream, loss, grad, scale, length, dim, vocab,
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l, rows, rows_each,
    ABSORBING: tl.constexpr, WEIGHTED: tl.constexpr, UPSTREAM: tl.constexpr,
    WITH_LOSS: tl.constexpr, WITH_GRAD: tl.constexpr, CONTIGUOUS: tl.constexpr,
    SCORE_ALIGNMENT: tl.constexpr, VEC: tl.constexpr, SEVERAL_ROWS: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * rows_each
    inputs = (log_score, sigma, x_t, x_0, row_weight, upstream)
    outputs, numbers = (loss, grad), (scale, length, dim, vocab)
    strides = (stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l)
    # A single row has no loop around it: with a loop, the compiler needs more registers.
    if not SEVERAL_ROWS:
        _position(
            inputs, outputs, numbers, strides, first,
            ABSORBING, WEIGHTED, UPSTREAM, WITH_LOSS, WITH_GRAD, CONTIGUOUS,
            SCORE_ALIGNMENT, VEC, UNIT, BLOCK,
        )  # fmt: skip
    else:
        for row in range(first, tl.minimum(first + rows_each, rows)):
            _position(
                inputs, outputs, numbers, strides, row,
                ABSORBING, WEIGHTED, UPSTREAM, WITH_LOSS, WITH_GRAD, CONTIGUOUS,
                SCORE_ALIGNMENT, VEC, UNIT, BLOCK,
            )  # fmt: skip


#: The kernel arguments on which autotuned settings depend.
KEY = ("dim", "ABSORBING", "WITH_LOSS", "WITH_GRAD", "CONTIGUOUS")


def launch(
    log_score: Tensor,
    entropy: Any,
    upstream: Tensor | None,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float,
) -> None:
    """Compute losses, gradients, or both.

    Args:
        log_score: (B, L, dim) in any layout.
        entropy: its noise and weights are float32 or float64.
        upstream: (B, L) float32 or float64, multiplied into each gradient row; or None.
        loss: (B, L) float32 output, or None.
        grad: (B, L, dim) output of unit stride over states, or None.
        scale: factor of all gradients.
    """
    rows, dim = log_score.shape[:2].numel(), log_score.shape[2]
    if rows == 0:
        return
    unused = entropy.x_t  # a pointer that is never read
    absorbing = entropy.graph == "absorbing"
    # As many states as fit into 16 bytes of the larger dtype, so that a thread stores what it
    # loads.
    size = log_score.element_size()
    vec = 16 // (size if grad is None else max(size, grad.element_size()))
    # Without a gradient, a row that is not touched costs only the start of a program.
    rows_each = settings.rows_per_program(rows, log_score, absorbing and grad is None)
    kind = f"{entropy.graph}_{'loss' if grad is None else 'gradient'}"
    plan = settings.plan(kind, vec, dim, rows_each, _score_entropy, KEY)
    plan.kernel[(-(-rows // rows_each),)](
        log_score, *tensors(entropy),
        unused if upstream is None else upstream,
        unused if loss is None else loss,
        unused if grad is None else grad,
        scale, *numbers(entropy), *log_score.stride(),
        *(grad.stride()[:2] if grad is not None else (0, 0)), rows, rows_each,
        ABSORBING=absorbing, WEIGHTED=entropy.row_weight is not None,
        UPSTREAM=upstream is not None, WITH_LOSS=loss is not None, WITH_GRAD=grad is not None,
        CONTIGUOUS=log_score.stride(2) == 1, SCORE_ALIGNMENT=score_alignment(log_score, grad, vec),
        VEC=vec, SEVERAL_ROWS=rows_each > 1, **plan.options,
    )  # fmt: skip
