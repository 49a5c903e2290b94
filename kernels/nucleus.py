"""Temperature and top-p for Triton kernels.

    w_y = exp((l_y - shift) * inverse_temperature) if l_y >= least, else 0

``least`` is the largest score for which these weights still sum to at least top_p of the sum of all
weights. It is found by bisection over the float32 numbers, with a sum over the row at each step:
nothing is sorted, and equal scores are all kept or all removed. ``chunks`` divides and sums the
row.
"""

import triton
import triton.language as tl

from sedd_fast.kernels.chunks import Weighting, chunk_sums
from sedd_fast.kernels.rows import row_max


@triton.jit
def _ordinal(x, SPARE: tl.constexpr):
    """The ordinal (int64) of a float32 among the float32 numbers whose last SPARE bits are 0."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) >> SPARE


@triton.jit
def _value(ordinal, SPARE: tl.constexpr):
    """The float32 with that ordinal; in that of a negative one the last SPARE bits are 1."""
    at = (ordinal * (1 << SPARE) + tl.where(ordinal < 0, (1 << SPARE) - 1, 0)).to(tl.int32)
    return (at ^ ((at >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _sums_from(row, shift, inverse_temperature, least, chunks):
    """``chunk_sums`` of the weights at a temperature, 0 for scores below ``least``."""
    return chunk_sums(
        row, Weighting(shift, shift * 0.0, inverse_temperature, least, True, True), chunks
    )


@triton.jit
def filtered_sums(row, shift, inverse_temperature, top_p, chunks):
    """``chunk_sums`` of the weights at a temperature within the nucleus, the shift, and the
    smallest score of the nucleus.
    """
    dtype: tl.constexpr = row.scores.dtype.element_ty
    # The last bits of a bfloat16 or float16 are 0 in float32, which saves steps of the bisection.
    HALF: tl.constexpr = 13 if dtype == tl.float16 else 0
    SPARE: tl.constexpr = 16 if dtype == tl.bfloat16 else HALF
    largest = row_max(row.scores, row.stride, row.dim, row.x_t, chunks.size)
    shift = largest.to(shift.dtype)
    least = largest * 0.0 - float("inf")
    edge, sums, total = _sums_from(row, shift, inverse_temperature, least, chunks)
    enough = top_p * total
    low, high = _ordinal(least, SPARE), _ordinal(largest, SPARE)
    high = tl.where(top_p < 1.0, high, low)
    while low < high:
        middle = low + (high - low + 1) // 2
        least = _value(middle, SPARE)
        edge, sums, total = _sums_from(row, shift, inverse_temperature, least, chunks)
        reached = total >= enough
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    least = _value(low, SPARE)
    edge, sums, total = _sums_from(row, shift, inverse_temperature, least, chunks)
    return edge, sums, total, shift, least
