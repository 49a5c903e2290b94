"""Score entropy and its gradient: one program a position, one pass over its row.

A position that is not touched (absorbing and not masked, or of weight 0) returns at once; its
gradient row is filled with zeros. Three launchers share one kernel: the loss alone, the recomputing
backward, and loss with gradient in one pass.
"""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.coefficients import entropy_coefficients
from sedd_fast.kernels.rows import (
    EXACT_BLOCK,
    exponential,
    fill_zero,
    row_pass,
    strided_pass,
    together,
)


@triton.jit
def _term(scores, is_x_t, is_x_0, terms, PICKED: tl.constexpr, WITH_GRAD: tl.constexpr):
    """exp(l) and l, 0 at x_t, and the gradient ga * exp(l) - gb - gc [y = x_0]."""
    ga, gb, gc = terms
    if ga.dtype == tl.float64:
        scores = scores.to(tl.float64)
    e = exponential(scores)
    l = scores.to(e.dtype)
    g = e
    if WITH_GRAD:
        g = ga * e - gb
    if PICKED:
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
    TOGETHER: tl.constexpr, VEC: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of one position."""
    log_score, sigma, x_t, x_0, row_weight, upstream = inputs
    loss, grad = outputs
    scale, length, dim, vocab = numbers
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l = strides
    b, i = row // length, row % length
    noise = tl.load(sigma + b).to(tl.float64)
    now, clean = tl.load(x_t + row), tl.load(x_0 + row)
    weight = tl.full((), 1.0, tl.float64)
    if WEIGHTED:
        weight = tl.load(row_weight + row).to(tl.float64)
    grad_scale = weight * scale
    if UPSTREAM:
        grad_scale = grad_scale * tl.load(upstream + row).to(tl.float64)
    valid = (noise > 0) & (noise < float("inf"))
    valid = valid & (now >= 0) & (now < dim) & (clean >= 0) & (clean < vocab)
    value = tl.where(valid, 0.0, float("nan")).to(tl.float64)
    grad_row = grad + (b * grad_stride_b + i * grad_stride_l)
    touched = valid & (grad_scale != 0)
    if ABSORBING:
        touched = touched & (now == vocab)
    if touched:
        # Compared with every state of a block: 32 bits are half the instructions of 64.
        state, target = now.to(tl.int32), clean.to(tl.int32)
        LOGS: tl.constexpr = WITH_LOSS and not ABSORBING  # else the sum of l is of no use
        scores = log_score + (b * stride_b + i * stride_l)
        ga, gb, gc = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        if WITH_GRAD:
            a, b_, c, _ = entropy_coefficients(noise, now, clean, vocab, ABSORBING)
            ga, gb, gc = grad_scale * a, grad_scale * b_, grad_scale * c
        fp32_terms = (ga.to(tl.float32), gb.to(tl.float32), gc.to(tl.float32))
        if CONTIGUOUS:
            sum_exp, sum_log = row_pass(
                scores, grad_row, dim, state, target, fp32_terms,
                _term, WITH_GRAD, LOGS, TOGETHER, VEC, UNIT, BLOCK,
            )  # fmt: skip
        else:
            sum_exp, sum_log = strided_pass(
                scores, grad_row, stride_y, dim, state, target, fp32_terms, _term, WITH_GRAD, UNIT
            )
        if sum_exp == float("inf"):  # float32 overflowed: the true value may not
            sum_exp, sum_log = strided_pass(
                scores, grad_row, stride_y, dim, state, target, (ga, gb, gc),
                _term, WITH_GRAD, EXACT_BLOCK,
            )  # fmt: skip
        if WITH_LOSS:  # here and not above: sixteen registers less while the row is read
            a, b_, c, k = entropy_coefficients(noise, now, clean, vocab, ABSORBING)
            l_0 = tl.load(scores + clean * stride_y).to(tl.float64)
            value = k + a * sum_exp
            value -= tl.where(b_ > 0, b_ * sum_log, 0.0)  # an absent term stays so at infinity
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
        "grad_stride_l", "rows", "each",
    ]
)  # fmt: skip
def _score_entropy(
    log_score, sigma, x_t, x_0, row_weight, upstream, loss, grad, scale, length, dim, vocab,
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l, rows, each,
    ABSORBING: tl.constexpr, WEIGHTED: tl.constexpr, UPSTREAM: tl.constexpr,
    WITH_LOSS: tl.constexpr, WITH_GRAD: tl.constexpr, CONTIGUOUS: tl.constexpr,
    TOGETHER: tl.constexpr, VEC: tl.constexpr, SEVERAL: tl.constexpr, UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * each
    inputs = (log_score, sigma, x_t, x_0, row_weight, upstream)
    outputs, numbers = (loss, grad), (scale, length, dim, vocab)
    strides = (stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l)
    # One row without a loop: with one the compiler keeps more in registers.
    if not SEVERAL:
        _position(
            inputs, outputs, numbers, strides, first,
            ABSORBING, WEIGHTED, UPSTREAM, WITH_LOSS, WITH_GRAD, CONTIGUOUS,
            TOGETHER, VEC, UNIT, BLOCK,
        )  # fmt: skip
    else:
        for row in range(first, tl.minimum(first + each, rows)):
            _position(
                inputs, outputs, numbers, strides, row,
                ABSORBING, WEIGHTED, UPSTREAM, WITH_LOSS, WITH_GRAD, CONTIGUOUS,
                TOGETHER, VEC, UNIT, BLOCK,
            )  # fmt: skip


#: What a choice of settings depends on, where it is timed.
KEY = ("dim", "ABSORBING", "WITH_LOSS", "WITH_GRAD", "CONTIGUOUS")


def launch(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    upstream: Tensor | None,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float,
    graph: str,
    vocab_size: int,
) -> None:
    """Run the kernel into ``loss`` (B, L) float32 and ``grad`` (B, L, dim), where given.

    ``grad`` has unit stride over states; ``upstream`` (B, L) multiplies each gradient row; it, the
    noise and the weights are float32 or float64.
    """
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    unused = x_t  # a pointer that is never read
    rows, absorbing = batch * length, graph == "absorbing"
    # Vectors of the wider of both, so that a thread stores what it has loaded.
    size = log_score.element_size()
    vec = 16 // (size if grad is None else max(size, grad.element_size()))
    # Without a gradient, a row that is not touched costs a program nothing but its start.
    each = settings.rows_a_program(rows, log_score, absorbing and grad is None)
    kind = f"{graph}_{'loss' if grad is None else 'gradient'}"
    plan = settings.plan(kind, vec, dim, each, _score_entropy, KEY)
    plan.kernel[(-(-rows // each),)](
        log_score, sigma, x_t, x_0,
        unused if row_weight is None else row_weight,
        unused if upstream is None else upstream,
        unused if loss is None else loss,
        unused if grad is None else grad,
        scale, length, dim, vocab_size, *log_score.stride(),
        *(grad.stride()[:2] if grad is not None else (0, 0)), rows, each,
        ABSORBING=graph == "absorbing", WEIGHTED=row_weight is not None,
        UPSTREAM=upstream is not None, WITH_LOSS=loss is not None, WITH_GRAD=grad is not None,
        CONTIGUOUS=log_score.stride(2) == 1, TOGETHER=together(log_score, grad, vec), VEC=vec,
        SEVERAL=each > 1, **plan.options,
    )  # fmt: skip
