"""A categorical draw from a row of weights by a hierarchical inverse CDF, for Triton kernels.

One pass gives the weights of the row's chunks, kept in registers; a uniform picks the chunk, and
only that one is read again. The same decisions as csrc/common/reverse_row.h.

A chunk is what one warp reads of a block, neighbouring states: its sum needs no other warp, so the
pass has no barrier. A row that is read in float64 or whose states are ``stride`` apart keeps no
sums; the draw walks over it again.
"""

import triton
import triton.language as tl

from sedd_fast.kernels.rows import EDGE, ends, exponential

#: States of a chosen chunk that a token is drawn from at last.
RUN = tl.constexpr(32)


@triton.jit
def _weights(scores, params, PLAIN: tl.constexpr, FILTERED: tl.constexpr):
    """max(0, exp(l - shift) + beta): in units of alpha and in the type of ``shift``; float32 is not
    shifted. PLAIN: beta is 0. FILTERED: l - shift is multiplied by the inverse temperature, and the
    weight is 0 where l < ``least``."""
    shift, beta, inverse_temperature, least = params
    if FILTERED:
        l = scores.to(shift.dtype)
        w = exponential((l - shift) * inverse_temperature) + beta
        w = tl.where(l < least.to(shift.dtype), 0.0, w)
    elif shift.dtype == tl.float64:
        w = exponential(scores.to(tl.float64) - shift)
    else:
        w = exponential(scores)
    if not PLAIN:
        if not FILTERED:
            w += beta
        w = tl.where(w < 0.0, 0.0, w)  # keeps NaN
    return w


@triton.jit
def _chunk(
    row, stride, begin, end, x_t, params,
    PLAIN: tl.constexpr, FILTERED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The weights of states begin .. begin + CHUNK - 1, 0 at x_t and from ``end`` on."""
    y = begin + tl.arange(0, CHUNK)
    scores = tl.load(row + y.to(tl.int64) * stride, mask=y < end, other=0.0)
    return tl.where((y < end) & (y != x_t), _weights(scores, params, PLAIN, FILTERED), 0.0)


@triton.jit
def _vector_sums(
    row, head, dim, x_t, params, PLAIN: tl.constexpr, FILTERED: tl.constexpr,
    VEC: tl.constexpr, VECTORS: tl.constexpr, WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The weight of the edge, float64, and (WARPS, BLOCKS) that of chunk w of block n: a chunk is
    what a warp reads of a block, neighbouring states, so that no warp waits for another."""
    PART: tl.constexpr = 32 * VEC
    CHUNK: tl.constexpr = VECTORS * PART
    BLOCK: tl.constexpr = WARPS * CHUNK
    shift = params[0]
    y, inside = ends(head, dim, VEC)
    few = tl.load(row + y, mask=inside, other=0.0)
    few = tl.where(inside & (y != x_t), _weights(few, params, PLAIN, FILTERED), 0.0)
    beginning = tl.arange(0, 2 * EDGE) < EDGE
    edge = tl.sum(tl.where(beginning, few, 0.0), 0).to(tl.float64)
    end = tl.sum(tl.where(beginning, 0.0, few), 0)
    row = tl.multiple_of(row + head, VEC * row.dtype.element_ty.primitive_bitwidth // 8)
    dim, x_t = dim - head, x_t - head
    warp = tl.arange(0, WARPS)
    y = warp[:, None] * CHUNK + tl.arange(0, PART)[None, :]
    sums = tl.zeros([WARPS, BLOCKS], shift.dtype)
    number = tl.arange(0, BLOCKS)[None, :]
    whole, own = dim // BLOCK, x_t // BLOCK
    # Whole blocks without x_t: nothing is compared with every state.
    for n in range(0, whole):
        if (n != own) | (x_t < 0):
            begin = row + n * BLOCK
            vectors = ()
            for k in tl.static_range(VECTORS):  # all loads before the first is used
                vectors = vectors + (tl.load(begin + k * PART + y),)  # noqa: RUF005
            w = _weights(vectors[0], params, PLAIN, FILTERED)
            for k in tl.static_range(1, VECTORS):
                w += _weights(vectors[k], params, PLAIN, FILTERED)
            sums = tl.where(number == n, tl.sum(w, 1)[:, None], sums)
    # The states after them, and the block of x_t, a vector a thread.
    for turn in range(0, 2):
        n = tl.where(turn == 0, whole, own)
        if (turn == 0) | ((x_t >= 0) & (own < whole)):
            part = tl.zeros([WARPS], shift.dtype)
            for first in range(n * BLOCK, n * BLOCK + CHUNK, PART):
                # The mask is the same for all states of a vector, so that it is loaded whole.
                here = y // VEC < (dim - first) // VEC
                scores = tl.load(row + first + y, mask=here, other=0.0)
                w = _weights(scores, params, PLAIN, FILTERED)
                part += tl.sum(tl.where(here & (y != x_t - first), w, 0.0), 1)
            sums = tl.where(number == n, part[:, None], sums)
    last = (dim - 1) // CHUNK  # the chunk of the last state
    at_end = (number == last // WARPS) & (warp[:, None] == last % WARPS)
    return edge, tl.where(at_end, sums + end, sums)


@triton.jit
def _strided_total(
    row, stride, dim, x_t, params, PLAIN: tl.constexpr, FILTERED: tl.constexpr, CHUNK: tl.constexpr
):
    """The weight of all states, ``stride`` apart; float64."""
    total = tl.zeros((), tl.float64)
    for begin in range(0, dim, CHUNK):
        w = _chunk(row, stride, begin, dim, x_t, params, PLAIN, FILTERED, CHUNK)
        total += tl.sum(w, 0).to(tl.float64)
    return total


@triton.jit
def chunk_sums(
    at, params, PLAIN: tl.constexpr, FILTERED: tl.constexpr, VECTORIZED: tl.constexpr,
    VEC: tl.constexpr, VECTORS: tl.constexpr, WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The weight of the edge, of every chunk, and of all; ``at``: the row, its stride, the states
    before its first aligned one, all states, and x_t. Not VECTORIZED: that of all alone."""
    row, stride, head, dim, x_t = at
    if VECTORIZED:
        edge, sums = _vector_sums(
            row, head, dim, x_t, params, PLAIN, FILTERED, VEC, VECTORS, WARPS, BLOCKS
        )
        total = edge + tl.sum(tl.sum(sums.to(tl.float64), 0), 0)
    else:
        total = _strided_total(row, stride, dim, x_t, params, PLAIN, FILTERED, VECTORS * 32 * VEC)
        edge, sums = total, total
    return edge, sums, total


@triton.jit
def chosen_chunk(sums, edge, u1):
    """The chunk in which the running sum of weights passes u1 * total, and how far into it.

    -1 is the edge, before all others.
    """
    index = tl.arange(0, sums.shape[0])
    running = tl.cumsum(sums, 0) + edge
    target = u1 * (tl.sum(sums, 0) + edge)
    last = tl.max(tl.where(sums > 0.0, index, -1), 0)
    chosen = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), last)
    chosen = tl.where(target < edge, -1, chosen)
    before = tl.where(chosen < 0, 0.0, tl.sum(tl.where(index < chosen, sums, 0.0), 0) + edge)
    chunk = tl.where(chosen < 0, edge, tl.sum(tl.where(index == chosen, sums, 0.0), 0))
    # Added up in another order than the running sum: it may lie a rounding beyond the target, and a
    # share below 0 would lead into what is before the chunk.
    return chosen, tl.maximum(target - before, 0.0) / tl.where(chunk > 0.0, chunk, 1.0)


@triton.jit
def chosen_state(w, share):
    """The first of the weights at which their running sum passes ``share`` of their sum."""
    # Rounding may leave the share past the end: the last state that has weight then.
    last_state = tl.max(tl.where(w > 0.0, tl.arange(0, w.shape[0]), 0), 0)
    w = w.to(tl.float64)
    # Against the sum of these very weights: the one that chose the chunk was formed in float32.
    passed = tl.sum((tl.cumsum(w, 0) <= share * tl.sum(w, 0)).to(tl.int32), 0)
    return tl.minimum(passed, last_state)


@triton.jit
def _strided_draw(
    row, stride, dim, x_t, params, total, u1,
    PLAIN: tl.constexpr, FILTERED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``draw`` by walking over the chunks once more: nothing of them was kept."""
    target = u1 * total
    running, before, weight = total * 0.0, total * 0.0, total * 0.0
    chosen = dim * 0
    for begin in range(0, dim, CHUNK):
        w = _chunk(row, stride, begin, dim, x_t, params, PLAIN, FILTERED, CHUNK)
        more = tl.sum(w, 0).to(tl.float64)
        # The last one that has weight and begins before the target.
        here = (more > 0.0) & (running <= target)
        chosen = tl.where(here, begin, chosen)
        before, weight = tl.where(here, running, before), tl.where(here, more, weight)
        running += more
    w = _chunk(row, stride, chosen, dim, x_t, params, PLAIN, FILTERED, CHUNK)
    return chosen + chosen_state(w, (target - before) / tl.where(weight > 0.0, weight, 1.0))


@triton.jit
def draw(
    at, params, edge, sums, total, u1, PLAIN: tl.constexpr, FILTERED: tl.constexpr,
    VECTORIZED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The first state at which the running sum of weights, in natural order, passes u1 * total."""
    row, stride, head, dim, x_t = at
    if VECTORIZED:
        ordered = tl.reshape(tl.trans(sums.to(tl.float64)), [sums.shape[0] * sums.shape[1]])
        chosen, share = chosen_chunk(ordered, edge, u1)
        begin = tl.where(chosen < 0, 0, head + chosen * CHUNK)
        end = tl.where(chosen < 0, head, tl.minimum(dim, begin + CHUNK))
        # In two stages: a running sum of the whole chunk in float64 would cost every program
        # registers.
        w = _chunk(row, stride, begin, end, x_t, params, PLAIN, FILTERED, CHUNK).to(tl.float64)
        parts = tl.sum(tl.reshape(w, [CHUNK // RUN, RUN]), 1)
        chosen, share = chosen_chunk(parts, 0.0, share)
        begin += chosen * RUN
        w = _chunk(row, stride, begin, end, x_t, params, PLAIN, FILTERED, RUN)
        drawn = begin + chosen_state(w, share)
    else:
        drawn = _strided_draw(row, stride, dim, x_t, params, total, u1, PLAIN, FILTERED, CHUNK)
    return drawn


def blocks(states: int, block: int) -> int:
    """Room for every block of a row: a power of two, and a register of each lane."""
    return max(32, 1 << (-(-states // block) - 1).bit_length())
