"""A categorical draw from a row of weights by a hierarchical inverse CDF, for Triton kernels.

The state drawn is the first y with

    sum of w_z over z <= y  >  u1 * (sum of all w_z),   w_z = max(0, exp(l_z - shift) + beta)

where w is 0 at x_t. One pass over the row forms the sums of its chunks, which stay in registers.
u1 selects a chunk, and only that chunk is read again. csrc/common/reverse_row.h does the same.

A row is divided as in ``rows``: an edge before the first aligned state, whole blocks, and a tail.
A chunk is the part of a block that one warp reads, neighbouring states, so its sum needs no other
warp and the pass has no barrier. A row that is read in float64, or that is not contiguous, keeps no
sums; the draw reads it a second time.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sedd_fast.kernels.coefficients import deviation
from sedd_fast.kernels.rows import EDGE, ends, exponential

#: States of a selected chunk among which the last step of the draw chooses.
RUN = tl.constexpr(32)


class RowOfChunks(NamedTuple):
    """A row of scores from which a state is drawn.

    Attributes:
        scores: pointer to its first score.
        stride: between two scores.
        head: states before the first aligned one.
        dim: number of states.
        x_t: state of the token, int32.
    """

    scores: Any
    stride: Any
    head: Any
    dim: Any
    x_t: Any


class Weighting(NamedTuple):
    """How a score l becomes a weight: max(0, exp(l - shift) + beta).

    Attributes:
        shift: float64, or a float32 that is not applied; its dtype is that of the weights.
        beta: in units of alpha.
        inverse_temperature, least: with ``filtered``, l - shift is multiplied by the former, and
            the weight of a score below ``least`` is 0.
        plain: known to the compiler; beta is 0, and nothing is clamped.
        filtered: known to the compiler; a temperature or top-p applies.
        deviates: known to the compiler; only with a float64 ``shift``. Instead of exp(l - shift)
            there is factor * exp(l - shift) - unit, computed from l where ``factor`` is 1.
        unit, factor: float64; read if ``deviates``. 0 and 1 change nothing.
    """

    shift: Any
    beta: Any
    inverse_temperature: Any
    least: Any
    plain: Any
    filtered: Any
    deviates: Any = False
    unit: Any = 0.0
    factor: Any = 1.0


class Chunks(NamedTuple):
    """How a row is divided, all known to the compiler.

    A kernel must write it as an argument of a call: assigned to a name, its fields would become
    run-time values. The same holds for ``plain``, ``filtered`` and
    ``deviates`` of ``Weighting``.

    Attributes:
        exact: the row is read in float64.
        vectorized: the row is contiguous and not ``exact``; else the next three are not used.
        vec: states in a vector of 16 bytes.
        warps: of a program, so chunks in a block.
        blocks: size of the axis of blocks.
        size: states of a chunk.
    """

    exact: Any
    vectorized: Any
    vec: Any
    warps: Any
    blocks: Any
    size: Any


@triton.jit
def _weights(scores, weighting):
    """The weights of scores."""
    shift = weighting.shift
    if weighting.filtered:
        l = scores.to(shift.dtype)
        w = exponential((l - shift) * weighting.inverse_temperature)
        if weighting.deviates:
            w = weighting.factor * tl.where(l < weighting.least, 0.0, w) - weighting.unit
        w += weighting.beta
        if not weighting.deviates:
            w = tl.where(l < weighting.least.to(shift.dtype), 0.0, w)
    elif weighting.deviates:
        l = scores.to(tl.float64)
        from_0 = deviation(l, shift, weighting.unit)
        w = tl.where(weighting.unit > 0.0, from_0, exponential(l - shift))
    elif shift.dtype == tl.float64:
        w = exponential(scores.to(tl.float64) - shift)
    else:
        w = exponential(scores)
    if not weighting.plain:
        if not weighting.filtered:
            w += weighting.beta
        w = tl.where(w < 0.0, 0.0, w)  # keeps NaN
    return w


@triton.jit
def _chunk(row, weighting, begin, end, CHUNK: tl.constexpr):
    """The weights of the states begin .. begin + CHUNK - 1; 0 at x_t and from ``end`` on."""
    y = begin + tl.arange(0, CHUNK)
    scores = tl.load(row.scores + y.to(tl.int64) * row.stride, mask=y < end, other=0.0)
    return tl.where((y < end) & (y != row.x_t), _weights(scores, weighting), 0.0)


@triton.jit
def _vector_sums(at, weighting, chunks):
    """The sum of the edge, float64, and (warps, blocks) the sum of chunk w of block n."""
    VEC: tl.constexpr = chunks.vec
    WARPS: tl.constexpr = chunks.warps
    CHUNK: tl.constexpr = chunks.size
    PART: tl.constexpr = 32 * VEC
    VECTORS: tl.constexpr = CHUNK // PART
    BLOCK: tl.constexpr = WARPS * CHUNK
    row, _, head, dim, x_t = at
    shift = weighting.shift
    y, inside = ends(head, dim, VEC)
    few = tl.load(row + y, mask=inside, other=0.0)
    few = tl.where(inside & (y != x_t), _weights(few, weighting), 0.0)
    beginning = tl.arange(0, 2 * EDGE) < EDGE
    edge = tl.sum(tl.where(beginning, few, 0.0), 0).to(tl.float64)
    end = tl.sum(tl.where(beginning, 0.0, few), 0)
    row = tl.multiple_of(row + head, VEC * row.dtype.element_ty.primitive_bitwidth // 8)
    dim, x_t = dim - head, x_t - head
    warp = tl.arange(0, WARPS)
    y = warp[:, None] * CHUNK + tl.arange(0, PART)[None, :]
    BLOCKS: tl.constexpr = chunks.blocks
    sums = tl.zeros([WARPS, BLOCKS], shift.dtype)
    number = tl.arange(0, BLOCKS)[None, :]
    whole, own = dim // BLOCK, x_t // BLOCK
    # Whole blocks that do not contain x_t: their states need not be compared with x_t.
    for n in range(0, whole):
        if (n != own) | (x_t < 0):
            begin = row + n * BLOCK
            vectors = ()
            for k in tl.static_range(VECTORS):  # all loads before the first is used
                vectors = vectors + (tl.load(begin + k * PART + y),)  # noqa: RUF005
            w = _weights(vectors[0], weighting)
            for k in tl.static_range(1, VECTORS):
                w += _weights(vectors[k], weighting)
            sums = tl.where(number == n, tl.sum(w, 1)[:, None], sums)
    # The states after the whole blocks, then the block that contains x_t; one vector per thread.
    for turn in range(0, 2):
        n = tl.where(turn == 0, whole, own)
        if (turn == 0) | ((x_t >= 0) & (own < whole)):
            part = tl.zeros([WARPS], shift.dtype)
            for first in range(n * BLOCK, n * BLOCK + CHUNK, PART):
                # The mask is the same for all states of a vector, so the load is one vector.
                here = y // VEC < (dim - first) // VEC
                scores = tl.load(row + first + y, mask=here, other=0.0)
                w = _weights(scores, weighting)
                part += tl.sum(tl.where(here & (y != x_t - first), w, 0.0), 1)
            sums = tl.where(number == n, part[:, None], sums)
    last = (dim - 1) // CHUNK  # the chunk of the last state
    at_end = (number == last // WARPS) & (warp[:, None] == last % WARPS)
    return edge, tl.where(at_end, sums + end, sums)


@triton.jit
def _strided_total(row, weighting, CHUNK: tl.constexpr):
    """The sum of all weights where states are ``stride`` apart; float64."""
    total = tl.zeros((), tl.float64)
    for begin in range(0, row.dim, CHUNK):
        w = _chunk(row, weighting, begin, row.dim, CHUNK)
        total += tl.sum(w, 0).to(tl.float64)
    return total


@triton.jit
def chunk_sums(row, weighting, chunks):
    """The sums of the edge, of every chunk, and of all weights; if not vectorized, only of all."""
    if chunks.vectorized:
        edge, sums = _vector_sums(row, weighting, chunks)
        total = edge + tl.sum(tl.sum(sums.to(tl.float64), 0), 0)
    else:
        total = _strided_total(row, weighting, chunks.size)
        edge, sums = total, total
    return edge, sums, total


@triton.jit
def chosen_chunk(sums, edge, u1):
    """The chunk in which the running sum of weights exceeds u1 * total, and the share of that
    chunk's weight before this point. -1 is the edge, which precedes all chunks.
    """
    index = tl.arange(0, sums.shape[0])
    running = tl.cumsum(sums, 0) + edge
    target = u1 * (tl.sum(sums, 0) + edge)
    last = tl.max(tl.where(sums > 0.0, index, -1), 0)
    chosen = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), last)
    chosen = tl.where(target < edge, -1, chosen)
    before = tl.where(chosen < 0, 0.0, tl.sum(tl.where(index < chosen, sums, 0.0), 0) + edge)
    chunk = tl.where(chosen < 0, edge, tl.sum(tl.where(index == chosen, sums, 0.0), 0))
    # ``before`` is added up in another order than the running sum, so rounding may put it beyond
    # the target. A share below 0 would select a state before the chunk.
    return chosen, tl.maximum(target - before, 0.0) / tl.where(chunk > 0.0, chunk, 1.0)


@triton.jit
def chosen_state(w, share):
    """The first index at which the running sum of the weights exceeds ``share`` of their total."""
    # If rounding puts the target beyond the total, the result is the last state that has weight.
    last_state = tl.max(tl.where(w > 0.0, tl.arange(0, w.shape[0]), 0), 0)
    w = w.to(tl.float64)
    # The total of these weights in float64; the sum that selected the chunk is of float32 terms.
    passed = tl.sum((tl.cumsum(w, 0) <= share * tl.sum(w, 0)).to(tl.int32), 0)
    return tl.minimum(passed, last_state)


@triton.jit
def _strided_draw(row, weighting, total, u1, CHUNK: tl.constexpr):
    """``draw`` for a row whose chunk sums were not kept: all chunks are read again."""
    target = u1 * total
    running, before, weight = total * 0.0, total * 0.0, total * 0.0
    chosen = row.dim * 0
    for begin in range(0, row.dim, CHUNK):
        w = _chunk(row, weighting, begin, row.dim, CHUNK)
        more = tl.sum(w, 0).to(tl.float64)
        # The last chunk that has weight and begins before the target.
        here = (more > 0.0) & (running <= target)
        chosen = tl.where(here, begin, chosen)
        before, weight = tl.where(here, running, before), tl.where(here, more, weight)
        running += more
    w = _chunk(row, weighting, chosen, row.dim, CHUNK)
    return chosen + chosen_state(w, (target - before) / tl.where(weight > 0.0, weight, 1.0))


@triton.jit
def draw(row, weighting, sums, u1, chunks):
    """The first state at which the running sum of weights exceeds u1 * total.

    ``sums``: what ``chunk_sums`` returned.
    """
    edge, of_chunks, total = sums
    CHUNK: tl.constexpr = chunks.size
    if chunks.vectorized:
        COUNT: tl.constexpr = of_chunks.shape[0] * of_chunks.shape[1]
        ordered = tl.reshape(tl.trans(of_chunks.to(tl.float64)), [COUNT])
        chosen, share = chosen_chunk(ordered, edge, u1)
        begin = tl.where(chosen < 0, 0, row.head + chosen * CHUNK)
        end = tl.where(chosen < 0, row.head, tl.minimum(row.dim, begin + CHUNK))
        # In two stages: a running sum over the whole chunk in float64 would need registers in every
        # program.
        w = _chunk(row, weighting, begin, end, CHUNK).to(tl.float64)
        parts = tl.sum(tl.reshape(w, [CHUNK // RUN, RUN]), 1)
        chosen, share = chosen_chunk(parts, 0.0, share)
        begin += chosen * RUN
        w = _chunk(row, weighting, begin, end, RUN)
        drawn = begin + chosen_state(w, share)
    else:
        drawn = _strided_draw(row, weighting, total, u1, CHUNK)
    return drawn


def blocks(states: int, block: int) -> int:
    """Size of the axis of blocks: a power of two of at least the blocks of a row, and at least 32,
    one for each lane of a warp.
    """
    return max(32, 1 << (-(-states // block) - 1).bit_length())
