"""Score entropy and its gradient: one program a position, one pass over its row.

A position that is not touched (absorbing and not masked, or of weight 0) returns at once; its
gradient row is filled with zeros. Three launchers share one kernel: the loss alone, the recomputing
backward, and loss with gradient in one pass.
"""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.coefficients import entropy_coefficients
from sedd_fast.kernels.rows import EDGE, exp_sum, first_aligned, row_max

#: Launch settings by (with a gradient, bytes of a score). Multiplications and additions fuse, as in
#: the C++ and CUDA kernels.
SETTINGS = {
    (False, 2): {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True},
    (False, 4): {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True},
    (True, 2): {"BLOCK": 2048, "num_warps": 8, "enable_fp_fusion": True},
    (True, 4): {"BLOCK": 1024, "num_warps": 8, "enable_fp_fusion": True},
}


@triton.jit
def _piece(
    log_score, grad, offset, grad_offset, y, inside, stride, x_t, x_0, shift, ga, gb, gc,
    MASKED: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """exp(l - shift) and l of some states; stores their gradient ga * exp(l - shift) - gb - gc."""
    at = y.to(tl.int64) * stride
    if MASKED:
        scores = tl.load(log_score + offset + at, mask=inside, other=0.0)
    else:
        scores = tl.load(log_score + offset + at)
    e, l = exp_sum(scores, y, inside, x_t, shift)
    if WITH_GRAD:
        g = ga * e - gb - tl.where(y == x_0, gc, 0.0)
        g = tl.where(y == x_t, 0.0, g).to(grad.dtype.element_ty)
        if MASKED:
            tl.store(grad + grad_offset + y, g, mask=inside)
        else:
            tl.store(grad + grad_offset + y, g)
    return e, l


@triton.jit
def _pass(
    log_score, grad, offset, grad_offset, stride, dim, x_t, x_0, shift, ga, gb, gc,
    VEC: tl.constexpr, BLOCK: tl.constexpr, CONTIGUOUS: tl.constexpr, WITH_GRAD: tl.constexpr,
    LOGS: tl.constexpr,
):  # fmt: skip
    """Sums of exp(l - shift) and of l over y != x_t, float64, storing the gradient on the way."""
    if CONTIGUOUS:
        head = first_aligned(offset, dim, VEC)
        edge = tl.arange(0, EDGE)
        edge_exp, edge_log = _piece(
            log_score, grad, offset, grad_offset, edge, edge < head, 1, x_t, x_0, shift, ga, gb, gc,
            True, WITH_GRAD,
        )  # fmt: skip
        sum_exp, sum_log = tl.sum(edge_exp, 0).to(tl.float64), tl.sum(edge_log, 0).to(tl.float64)
        # From here every block begins on 16 bytes, which the compiler cannot see by itself.
        start = tl.multiple_of(offset + head, VEC)
        grad_start = grad_offset + head
        if WITH_GRAD:
            grad_start = tl.multiple_of(grad_start, VEC)
        step = 1
        body = (dim - head) // BLOCK * BLOCK
    else:
        sum_exp, sum_log = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        head, body = dim * 0, dim * 0
        start, grad_start, step = offset, grad_offset, stride
    block_exp = tl.zeros([BLOCK], tl.float32)
    block_log = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, body, BLOCK):
        y = begin + tl.arange(0, BLOCK)
        e, l = _piece(
            log_score, grad, start, grad_start, y, y >= 0, step, x_t - head, x_0 - head, shift,
            ga, gb, gc, False, WITH_GRAD,
        )  # fmt: skip
        block_exp += e
        if LOGS:
            block_log += l
    for begin in range(body, dim - head, BLOCK):
        y = begin + tl.arange(0, BLOCK)
        e, l = _piece(
            log_score, grad, start, grad_start, y, y < dim - head, step, x_t - head, x_0 - head,
            shift, ga, gb, gc, True, WITH_GRAD,
        )  # fmt: skip
        block_exp += e
        if LOGS:
            block_log += l
    sum_exp += tl.sum(block_exp.to(tl.float64), 0)
    if LOGS:
        sum_log += tl.sum(block_log.to(tl.float64), 0)
    return sum_exp, sum_log


@triton.jit
def _fill_zero(grad, grad_offset, dim, VEC: tl.constexpr, BLOCK: tl.constexpr):
    head = first_aligned(grad_offset, dim, VEC)
    y = tl.arange(0, EDGE)
    tl.store(grad + grad_offset + y, tl.zeros([EDGE], grad.dtype.element_ty), mask=y < head)
    start = tl.multiple_of(grad_offset + head, VEC)
    body = (dim - head) // BLOCK * BLOCK
    for begin in range(0, body, BLOCK):
        tl.store(
            grad + start + begin + tl.arange(0, BLOCK), tl.zeros([BLOCK], grad.dtype.element_ty)
        )
    y = body + tl.arange(0, BLOCK)
    tl.store(grad + start + y, tl.zeros([BLOCK], grad.dtype.element_ty), mask=y < dim - head)


@triton.jit
def _score_entropy(
    log_score, sigma, x_t, x_0, row_weight, upstream, loss, grad, scale, length, dim, vocab,
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l,
    ABSORBING: tl.constexpr, WEIGHTED: tl.constexpr, UPSTREAM: tl.constexpr,
    WITH_LOSS: tl.constexpr, WITH_GRAD: tl.constexpr, CONTIGUOUS: tl.constexpr,
    VEC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, i = row // length, row % length
    noise = tl.load(sigma + b)
    now, clean = tl.load(x_t + row), tl.load(x_0 + row)
    weight = tl.full((), 1.0, tl.float64)
    if WEIGHTED:
        weight = tl.load(row_weight + row)
    lift = weight * scale
    if UPSTREAM:
        lift = lift * tl.load(upstream + row)
    valid = (noise > 0) & (noise < float("inf"))
    valid = valid & (now >= 0) & (now < dim) & (clean >= 0) & (clean < vocab)
    value = tl.where(valid, 0.0, float("nan")).to(tl.float64)
    grad_offset = b * grad_stride_b + i * grad_stride_l
    touched = valid & (lift != 0)
    if ABSORBING:
        touched = touched & (now == vocab)
    if touched:
        # Compared with every state of the row: 32 bits are half the instructions of 64.
        state, target = now.to(tl.int32), clean.to(tl.int32)
        LOGS: tl.constexpr = WITH_LOSS and not ABSORBING  # the sum of l is of no use otherwise
        offset = b * stride_b + i * stride_l
        ga, gb, gc = 0.0, 0.0, 0.0
        if WITH_GRAD:
            a, b_, c, _ = entropy_coefficients(noise, now, clean, vocab, ABSORBING)
            gradient_a = lift * a
            ga, gb, gc = (
                gradient_a.to(tl.float32),
                (lift * b_).to(tl.float32),
                (lift * c).to(tl.float32),
            )
        sum_exp, sum_log = _pass(
            log_score, grad, offset, grad_offset, stride_y, dim, state, target, 0.0, ga, gb, gc,
            VEC, BLOCK, CONTIGUOUS, WITH_GRAD, LOGS,
        )  # fmt: skip
        if sum_exp == float("inf"):  # float32 overflowed: shift by the maximum m, lift by exp(m)
            m = row_max(log_score, offset, stride_y, dim, state, BLOCK)
            lifted = tl.exp(m.to(tl.float64))
            if WITH_GRAD:
                # Finite: inf times an exp(l - m) of 0 would be NaN.
                lifted_a = tl.minimum(tl.maximum(gradient_a * lifted, -3e38), 3e38)
                ga = lifted_a.to(tl.float32)
            sum_exp, sum_log = _pass(
                log_score, grad, offset, grad_offset, stride_y, dim, state, target, m, ga, gb, gc,
                VEC, BLOCK, CONTIGUOUS, WITH_GRAD, LOGS,
            )  # fmt: skip
            sum_exp = sum_exp * lifted
        if WITH_LOSS:  # here and not above: sixteen registers less while the row is read
            a, b_, c, k = entropy_coefficients(noise, now, clean, vocab, ABSORBING)
            l_0 = tl.load(log_score + offset + clean * stride_y).to(tl.float64)
            value = k + a * sum_exp
            value -= tl.where(b_ > 0, b_ * sum_log, 0.0)  # an absent term stays so at infinity
            value -= tl.where(c > 0, c * l_0, 0.0)
            value = value * weight
    else:
        if WITH_GRAD:
            _fill_zero(grad, grad_offset, dim, VEC, BLOCK)
    if WITH_LOSS:
        tl.store(loss + row, value.to(loss.dtype.element_ty))


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

    ``grad`` has unit stride over states; ``upstream`` (B, L) float64 multiplies each gradient row.
    """
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    unused = x_t  # a pointer that is never read
    row_stride = log_score.stride()
    contiguous = row_stride[2] == 1 and (grad is None or grad.stride()[:2] == row_stride[:2])
    settings = SETTINGS[grad is not None, log_score.element_size()]
    _score_entropy[(batch * length,)](
        log_score, sigma, x_t, x_0,
        unused if row_weight is None else row_weight,
        unused if upstream is None else upstream,
        unused if loss is None else loss,
        unused if grad is None else grad,
        scale, length, dim, vocab_size, *row_stride,
        *(grad.stride()[:2] if grad is not None else (0, 0)),
        ABSORBING=graph == "absorbing", WEIGHTED=row_weight is not None,
        UPSTREAM=upstream is not None, WITH_LOSS=loss is not None, WITH_GRAD=grad is not None,
        CONTIGUOUS=contiguous, VEC=16 // log_score.element_size(), **settings,
    )  # fmt: skip
