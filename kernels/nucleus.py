"""Temperature and top-p for Triton kernels: the weights of a row cut to its nucleus."""

import triton
import triton.language as tl

from sedd_fast.kernels.chunks import chunk_sums
from sedd_fast.kernels.rows import row_max


@triton.jit
def _place(x, SPARE: tl.constexpr):
    """Where a float32 lies among those whose last SPARE bits are 0, as a whole number (int64)."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) >> SPARE


@triton.jit
def _value(place, SPARE: tl.constexpr):
    """The float32 at a place; of a negative one the spare bits are 1 there."""
    at = (place * (1 << SPARE) + tl.where(place < 0, (1 << SPARE) - 1, 0)).to(tl.int32)
    return (at ^ ((at >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _sums_from(
    at, shift, inverse_temperature, least, VECTORIZED: tl.constexpr,
    VEC: tl.constexpr, VECTORS: tl.constexpr, WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """``chunk_sums`` of the weights at a temperature, of scores from ``least`` on."""
    params = (shift, shift * 0.0, inverse_temperature, least)
    return chunk_sums(at, params, True, True, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS)


@triton.jit
def filtered_sums(
    at, shift, inverse_temperature, top_p, VECTORIZED: tl.constexpr,
    VEC: tl.constexpr, VECTORS: tl.constexpr, WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """``chunk_sums`` of the weights at a temperature and cut to the nucleus, the shift, and the
    least score of the nucleus: the largest from which on the weights reach top_p of all, by
    bisection."""
    row, stride, _, dim, x_t = at
    # The last bits of every bfloat16 or float16 are 0 once it is a float32: fewer passes.
    HALF: tl.constexpr = 13 if row.dtype.element_ty == tl.float16 else 0
    SPARE: tl.constexpr = 16 if row.dtype.element_ty == tl.bfloat16 else HALF
    largest = row_max(row, stride, dim, x_t, VECTORS * 32 * VEC)
    shift = largest.to(shift.dtype)
    least = largest * 0.0 - float("inf")
    edge, sums, total = _sums_from(
        at, shift, inverse_temperature, least, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS
    )
    enough = top_p * total
    low, high = _place(least, SPARE), _place(largest, SPARE)
    high = tl.where(top_p < 1.0, high, low)
    while low < high:
        middle = low + (high - low + 1) // 2
        least = _value(middle, SPARE)
        edge, sums, total = _sums_from(
            at, shift, inverse_temperature, least, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS
        )
        reached = total >= enough
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    least = _value(low, SPARE)
    edge, sums, total = _sums_from(
        at, shift, inverse_temperature, least, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS
    )
    return edge, sums, total, shift, least
