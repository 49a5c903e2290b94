"""How a row of log scores is read: a scalar edge up to 16 bytes, whole blocks, a masked tail.

A row of 50,258 bf16 numbers starts anywhere within 16 bytes, and a masked load is only as wide as
its mask is known to be constant. So a row is cut in three: the first few states up to an aligned
one, blocks without a mask (full-width loads), and the rest.
"""

import triton
import triton.language as tl

EDGE = tl.constexpr(16)  # covers the states before the first aligned one, in any dtype


@triton.jit
def first_aligned(offset, dim, VEC: tl.constexpr):
    """States before the first one whose offset (in elements) is a multiple of VEC; int32."""
    return tl.minimum(((VEC - offset % VEC) % VEC).to(tl.int32), dim)


@triton.jit
def edge_states(head):
    """(states, mask) of the edge."""
    y = tl.arange(0, EDGE)
    return y, y < head


@triton.jit
def exp_sum(scores, y, inside, x_t, shift):
    """exp(l - shift) of a piece in float32, 0 outside it and at x_t; and l, 0 there."""
    counted = inside & (y != x_t)
    l = scores.to(tl.float32)
    return tl.where(counted, tl.exp(l - shift), 0.0), tl.where(counted, l, 0.0)


@triton.jit
def row_max(log_score, offset, stride, dim, x_t, BLOCK: tl.constexpr):
    """Largest score but that of x_t; only rows that overflow or vanish in float32 come here."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    for begin in range(0, dim, BLOCK):
        y = begin + tl.arange(0, BLOCK)
        inside = (y < dim) & (y != x_t)
        l = tl.load(log_score + offset + y.to(tl.int64) * stride, mask=inside, other=-float("inf"))
        best = tl.maximum(best, l.to(tl.float32))
    return tl.max(best, 0)
