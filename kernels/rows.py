"""How a row of log scores is read and exponentiated.

A row of 50,258 bf16 numbers starts anywhere within 16 bytes, and a masked load is only as wide as
its mask is known to be constant. So a row is cut in three: the first few states up to an aligned
one, blocks without a mask (full-width loads), and the rest.
"""

import triton
import triton.language as tl

EDGE = tl.constexpr(16)  # covers the states before the first aligned one, in any dtype
#: States at a time where a row is repeated in float64: few, because the registers of this rare path
#: would be those of every program.
EXACT_BLOCK = tl.constexpr(256)

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2_HIGH = tl.constexpr(0.693145751953125)  # 15 bits: times a whole number below 2^9 it is exact
LN_2_LOW = tl.constexpr(1.42860682030941723e-06)
WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number
LOG2_E_HIGH = tl.constexpr(47274 / 32768)  # 16 bits: times a bf16 it is exact; rounded down
LOG2_E_REST = tl.constexpr(4.888495152143634e-06)  # ln 2 * (log2 e - LOG2_E_HIGH)


@triton.jit
def first_aligned(offset, dim, VEC: tl.constexpr):
    """States before the first one whose offset (in elements) is a multiple of VEC; int32."""
    return tl.minimum(((VEC - offset % VEC) % VEC).to(tl.int32), dim)


@triton.jit
def exponential(l):
    """exp(l), float64 of float64, else float32, to two units in the last place at any l.

    tl.exp rounds l * log2 e before it raises 2 to it, an error that grows with |l| (3e-6 at 20),
    and near small noise S and c * l_{x_0} cancel.
    """
    if l.dtype == tl.float64:
        e = tl.exp(l)
    elif l.dtype == tl.bfloat16:
        # 2^(product) * (1 + what the product leaves out): the product is exact. A score of minus
        # infinity would meet 0 * infinity.
        x = tl.maximum(l.to(tl.float32), -200.0, propagate_nan=tl.PropagateNan.ALL)
        power = tl.exp2(x * LOG2_E_HIGH)
        e = power + power * (x * LOG2_E_REST)
    else:
        # 2^n * exp(rest), |rest| <= ln 2 / 2; where 2^n overflows so does the caller's sum.
        x = tl.maximum(l.to(tl.float32), -150.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 100.0, propagate_nan=tl.PropagateNan.ALL)
        n = (x * LOG2_E + WHOLE) - WHOLE
        rest = (x - n * LN_2_HIGH) - n * LN_2_LOW
        e = tl.exp2(rest * LOG2_E) * tl.exp2(n)
    return e


@triton.jit
def vector_sums(x, VEC: tl.constexpr):
    """Sums of neighbours, VEC at a time: within a thread, and so that it need not keep them all."""
    return tl.sum(tl.reshape(x, [x.shape[0] // VEC, VEC]), 1)


@triton.jit
def fill_zero(grad, grad_offset, dim, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros into the gradient row of a position that is not touched."""
    head = first_aligned(grad_offset, dim, VEC)
    y = tl.arange(0, EDGE)
    tl.store(grad + grad_offset + y, tl.zeros([EDGE], grad.dtype.element_ty), mask=y < head)
    start = tl.multiple_of(grad_offset + head, VEC)
    body = (dim - head) // BLOCK * BLOCK
    zeros = tl.zeros([BLOCK], grad.dtype.element_ty)
    for begin in range(0, body, BLOCK):
        tl.store(grad + start + begin + tl.arange(0, BLOCK), zeros)
    y = body + tl.arange(0, BLOCK)
    tl.store(grad + start + y, zeros, mask=y < dim - head)


@triton.jit
def row_max(log_score, offset, stride, dim, x_t, BLOCK: tl.constexpr):
    """Largest score but that of x_t and NaN; few rows come here: those that overflow or vanish in
    float32, and those that move at a temperature or top-p."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    for begin in range(0, dim, BLOCK):
        y = begin + tl.arange(0, BLOCK)
        inside = (y < dim) & (y != x_t)
        l = tl.load(log_score + offset + y.to(tl.int64) * stride, mask=inside, other=-float("inf"))
        best = tl.maximum(best, l.to(tl.float32))
    return tl.max(best, 0)
