"""One reverse step: a categorical draw a position by a hierarchical inverse CDF, one program each.

One pass over the row gives the weights of its chunks, kept in registers; u1 picks the chunk and
only that one is read again. The clamped law of the uniform graph needs the sum S first: a second
pass, which finds the row in cache, and only for the rows that may move. So do a temperature and
top-p. The same decisions as csrc/common/reverse_row.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.coefficients import (
    ANALYTIC,
    DENOISE,
    EULER,
    output_scale,
    reverse_coefficients,
)
from sedd_fast.kernels.rows import EDGE, EXACT_BLOCK, exponential, first_aligned, row_max

METHODS = {"analytic": ANALYTIC, "euler": EULER, "denoise": DENOISE}


@triton.jit
def _weights(scores, inside, law, SHAPED: tl.constexpr):
    """max(0, exp(l - shift) + beta), 0 outside: in units of alpha and in the type of ``shift``;
    float32 is not shifted. SHAPED: of (l - shift) * coldness, and 0 below ``least``."""
    shift, beta, coldness, least = law
    if SHAPED:
        l = scores.to(shift.dtype)
        w = exponential((l - shift) * coldness) + beta
        w = tl.where(l < least.to(shift.dtype), 0.0, w)
    elif shift.dtype == tl.float64:
        w = exponential(scores.to(tl.float64) - shift) + beta
    else:
        w = exponential(scores) + beta
    w = tl.where(w < 0.0, 0.0, w)  # keeps NaN
    return tl.where(inside, w, 0.0)


@triton.jit
def _chunk(
    log_score, offset, stride, begin, end, x_t, law,
    SHAPED: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weights of states begin .. begin + BLOCK - 1, 0 at x_t and from ``end`` on."""
    y = begin + tl.arange(0, BLOCK)
    at = y.to(tl.int64) * stride
    if MASKED:
        scores = tl.load(log_score + offset + at, mask=y < end, other=0.0)
    else:
        scores = tl.load(log_score + offset + at)
    return _weights(scores, (y < end) & (y != x_t), law, SHAPED)


@triton.jit
def _chunk_sums(
    log_score, offset, stride, head, dim, x_t, law, SHAPED: tl.constexpr,
    VEC: tl.constexpr, VECTORS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """(CHUNKS,) float64: the weight of the edge, then of every chunk after it."""
    index = tl.arange(0, CHUNKS)
    y = tl.arange(0, EDGE)
    scores = tl.load(log_score + offset + y.to(tl.int64) * stride, mask=y < head, other=0.0)
    edge = tl.sum(_weights(scores, (y < head) & (y != x_t), law, SHAPED), 0)
    sums = tl.where(index == 0, edge.to(tl.float64), 0.0)
    rest = dim - head
    start = offset + head * stride
    own = x_t - head
    body = rest * 0
    if VECTORS:
        start = tl.multiple_of(offset + head, VEC)
        body = rest // BLOCK * BLOCK
        for begin in range(0, body, BLOCK):
            w = _chunk(log_score, start, 1, begin, rest, own, law, SHAPED, False, BLOCK)
            sums = tl.where(index == begin // BLOCK + 1, tl.sum(w, 0).to(tl.float64), sums)
    for begin in range(body, rest, BLOCK):
        w = _chunk(log_score, start, stride, begin, rest, own, law, SHAPED, True, BLOCK)
        sums = tl.where(index == begin // BLOCK + 1, tl.sum(w, 0).to(tl.float64), sums)
    return sums


@triton.jit
def chosen_chunk(sums, u1):
    """The chunk in which the running sum of weights passes u1 * total, and how far into it."""
    index = tl.arange(0, sums.shape[0])
    running = tl.cumsum(sums, 0)
    target = u1 * tl.sum(sums, 0)
    last = tl.max(tl.where(sums > 0.0, index, 0), 0)
    chosen = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), last)
    before = tl.sum(tl.where(index < chosen, sums, 0.0), 0)
    chunk = tl.sum(tl.where(index == chosen, sums, 0.0), 0)
    return chosen, (target - before) / tl.where(chunk > 0.0, chunk, 1.0)


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
def _draw(
    log_score, offset, stride, head, dim, x_t, law, sums, u1,
    SHAPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first state at which the running sum of weights, in natural order, passes u1 * total."""
    chosen, share = chosen_chunk(sums, u1)
    begin = tl.where(chosen == 0, 0, head + (chosen - 1) * BLOCK)
    end = tl.where(chosen == 0, head, dim)
    w = _chunk(log_score, offset, stride, begin, end, x_t, law, SHAPED, True, BLOCK)
    return begin + chosen_state(w, share)


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
def _reshaped(
    log_score, offset, stride, head, dim, x_t, shift, coldness, top_p,
    VEC: tl.constexpr, VECTORS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The chunks' weights at a temperature and cut to the nucleus, the shift, and the least score
    of the nucleus: the largest from which on the weights reach top_p of all, by bisection."""
    # The last 13 bits of every bfloat16 or float16 are 0 once it is a float32: fewer passes.
    SPARE: tl.constexpr = 13 if log_score.dtype.element_ty.primitive_bitwidth == 16 else 0
    largest = row_max(log_score, offset, stride, dim, x_t, BLOCK)
    shift = largest.to(shift.dtype)
    beta = shift * 0.0
    least = largest * 0.0 - float("inf")
    sums = _chunk_sums(
        log_score, offset, stride, head, dim, x_t, (shift, beta, coldness, least), True,
        VEC, VECTORS, BLOCK, CHUNKS,
    )  # fmt: skip
    enough = top_p * tl.sum(sums, 0)
    low, high = _place(least, SPARE), _place(largest, SPARE)
    high = tl.where(top_p < 1.0, high, low)
    while low < high:
        middle = low + (high - low + 1) // 2
        least = _value(middle, SPARE)
        sums = _chunk_sums(
            log_score, offset, stride, head, dim, x_t, (shift, beta, coldness, least), True,
            VEC, VECTORS, BLOCK, CHUNKS,
        )  # fmt: skip
        reached = tl.sum(sums, 0) >= enough
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    least = _value(low, SPARE)
    sums = _chunk_sums(
        log_score, offset, stride, head, dim, x_t, (shift, beta, coldness, least), True,
        VEC, VECTORS, BLOCK, CHUNKS,
    )  # fmt: skip
    return sums, shift, least


@triton.jit
def _resolved(total, terms):
    """Whether float32 resolves what is left of ``terms`` once beta is added: they may cancel (much
    noise removed at once, scores nearly equal)."""
    return total > 1e-2 * terms


@triton.jit
def _must_stay(alpha, beta, gamma, total, u0, dim):
    """Whether it stays whatever clamping takes away: the weight of moving is at most alpha * S, or
    no noise is removed. The factor is for rounding; where float32 might not resolve the law the
    second pass finds out."""
    least = total + beta / tl.where(alpha > 0.0, alpha, 1.0) * dim.to(tl.float64)
    stay = u0 * tl.where(gamma > 0.0, gamma, 0.0)
    certain = stay >= (1.0 - u0) * alpha * total * (1.0 + 1e-6)
    return (alpha == 0.0) | (_resolved(least, total) & certain)


@triton.jit
def _step(
    log_score, sigma, dsigma, u, x_s, offset, stride, head, length, dim, state, vocab,
    coldness, top_p,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    SHAPED: tl.constexpr, EXACT: tl.constexpr, CONTIGUOUS: tl.constexpr, VEC: tl.constexpr,
    BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Store the next state if it moves; returns whether the arithmetic is good enough.

    SCALED: the scores are raw outputs f of log scores f - ln E - ln V.
    SHAPED: a temperature or top-p changes the shares of the states, of the rows that move.
    EXACT: everything in float64, the row shifted by its maximum; always good enough. What the pass
    over the row does not need is loaded after it: kept, it would cost the pass registers.
    """
    VECTORS: tl.constexpr = CONTIGUOUS and not EXACT
    if EXACT:
        shift = row_max(log_score, offset, stride, dim, state, BLOCK).to(tl.float64)
        shift = tl.maximum(shift, -700.0)  # exp(700) is still a float64
    else:
        shift = tl.zeros((), tl.float32)
    beta = shift * 0.0
    least = tl.full((), -float("inf"), tl.float32)
    sums = _chunk_sums(
        log_score, offset, stride, head, dim, state, (shift, beta, coldness, least), False,
        VEC, VECTORS, BLOCK, CHUNKS,
    )  # fmt: skip
    total = tl.sum(sums, 0)
    good = (total > 1e-30) & (total < float("inf"))
    if EXACT:
        good = total == total
    row = tl.program_id(0).to(tl.int64)
    b = row // length
    noise, step, u0 = tl.load(sigma + b), tl.load(dsigma + b), tl.load(u + 2 * row)
    scale = tl.full((), 1.0, tl.float64)
    if SCALED:
        scale = output_scale(noise, vocab)
    alpha, lift, gamma = reverse_coefficients(
        noise, step, total * scale, tl.exp(-shift.to(tl.float64)), vocab, ABSORBING, METHOD
    )
    alpha *= scale
    may_move = good
    if CLAMPED:
        # Most rows of a small step stay for certain, and need no second pass.
        may_move = good & (_must_stay(alpha, lift, gamma, total, u0, dim) == 0)
        if may_move:
            whole = total
            if SHAPED:
                sums, shift, least = _reshaped(
                    log_score, offset, stride, head, dim, state, shift, coldness, top_p,
                    VEC, VECTORS, BLOCK, CHUNKS,
                )  # fmt: skip
                whole = tl.sum(sums, 0)
                alpha *= total / whole
            beta = (lift / alpha).to(beta.dtype)
            sums = _chunk_sums(
                log_score, offset, stride, head, dim, state, (shift, beta, coldness, least), SHAPED,
                VEC, VECTORS, BLOCK, CHUNKS,
            )  # fmt: skip
            total = tl.sum(sums, 0)
            if not EXACT:
                good = _resolved(total, whole)
    moving = alpha * total
    law = moving + tl.where(gamma > 0.0, gamma, 0.0)
    drawable = (alpha > 0.0) & (law > 0.0) & (law < float("inf")) & (gamma == gamma)
    if good & may_move & drawable & (u0 * law < moving):
        if SHAPED and not CLAMPED:
            sums, shift, least = _reshaped(
                log_score, offset, stride, head, dim, state, shift, coldness, top_p,
                VEC, VECTORS, BLOCK, CHUNKS,
            )  # fmt: skip
        u1 = tl.load(u + 2 * row + 1)
        drawn = _draw(
            log_score, offset, stride, head, dim, state, (shift, beta, coldness, least), sums, u1,
            SHAPED, BLOCK,
        )  # fmt: skip
        tl.store(x_s + row, drawn.to(tl.int64))
    return good


@triton.jit
def may_move(now, noise, step, u0, u1, dim, vocab, ABSORBING: tl.constexpr):
    """Whether noise touched the token, and nothing that the law is made of is out of range."""
    valid = (noise > 0) & (noise < float("inf")) & (step >= 0) & (step < float("inf"))
    valid = valid & (now >= 0) & (now < dim)
    valid = valid & (u0 >= 0) & (u0 < 1) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        valid = valid & (now == vocab)
    return valid


@triton.jit(do_not_specialize=["length", "dim", "vocab", "stride_b", "stride_l", "stride_y"])
def _reverse_step(
    log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab, stride_b, stride_l, stride_y,
    coldness, top_p,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    SHAPED: tl.constexpr, CONTIGUOUS: tl.constexpr, VEC: tl.constexpr, CHUNKS: tl.constexpr,
    EXACT_CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, i = row // length, row % length
    now = tl.load(x_t + row)
    noise, step = tl.load(sigma + b), tl.load(dsigma + b)
    u0, u1 = tl.load(u + 2 * row), tl.load(u + 2 * row + 1)
    tl.store(x_s + row, now)
    if may_move(now, noise, step, u0, u1, dim, vocab, ABSORBING):
        state = now.to(tl.int32)  # compared with every state: 32 bits are half the instructions
        offset = b * stride_b + i * stride_l
        head = dim * 0
        if CONTIGUOUS:
            head = first_aligned(offset, dim, VEC)
        good = _step(
            log_score, sigma, dsigma, u, x_s, offset, stride_y, head, length, dim, state, vocab,
            coldness, top_p, ABSORBING, METHOD, CLAMPED, SCALED, SHAPED, False, CONTIGUOUS, VEC,
            BLOCK, CHUNKS,
        )  # fmt: skip
        if good == 0:  # overflowed, vanished or cancelled in float32
            _step(
                log_score, sigma, dsigma, u, x_s, offset, stride_y, head, length, dim, state, vocab,
                coldness, top_p, ABSORBING, METHOD, CLAMPED, SCALED, SHAPED, True, CONTIGUOUS, VEC,
                EXACT_BLOCK, EXACT_CHUNKS,
            )  # fmt: skip


def chunks(states: int, block: int) -> int:
    """Room for the edge and every block of a row: a power of two."""
    return triton.next_power_of_2(triton.cdiv(states, block) + 1)


def launch(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    u: Tensor,
    x_s: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
    scale_by_sigma: bool = False,
    coldness: float = 1.0,
    top_p: float = 1.0,
) -> None:
    """Draw the next tokens into ``x_s`` (B, L) int64.

    ``scale_by_sigma``: the scores are raw outputs f of log scores f - ln E - ln V. ``coldness``:
    one over the temperature.
    """
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    score_bytes, absorbing = log_score.element_size(), graph == "absorbing"
    plan = settings.plan("reverse_step", score_bytes, dim, _reverse_step, KEY)
    plan.kernel[(batch * length,)](
        log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab_size, *log_score.stride(),
        coldness, top_p, ABSORBING=absorbing, METHOD=METHODS[method].value,
        CLAMPED=not absorbing and method != "euler", SCALED=scale_by_sigma,
        SHAPED=coldness != 1 or top_p < 1,
        CONTIGUOUS=log_score.stride(2) == 1,
        VEC=16 // score_bytes, CHUNKS=chunks(dim, plan.smallest),
        EXACT_CHUNKS=chunks(dim, EXACT_BLOCK.value), **plan.options,
    )  # fmt: skip


#: What a choice of settings depends on, where it is timed.
KEY = ("dim", "ABSORBING", "METHOD", "CONTIGUOUS", "SHAPED")
