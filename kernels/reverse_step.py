"""One reverse step: a categorical draw a position by a hierarchical inverse CDF, one program each.

One pass over the row gives the weights of its chunks, kept in registers; u1 picks the chunk and
only that one is read again. The clamped law of the uniform graph needs the sum S first: a second
pass, which finds the row in cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.coefficients import ANALYTIC, DENOISE, EULER, reverse_coefficients
from sedd_fast.kernels.rows import EDGE, first_aligned, row_max

METHODS = {"analytic": ANALYTIC, "euler": EULER, "denoise": DENOISE}
#: Launch settings. Multiplications and additions fuse, as in the C++ and CUDA kernels.
SETTINGS = {"CHUNK": 2048, "num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _weights(scores, inside, shift, beta):
    """max(0, exp(l - shift) + beta), float32, 0 outside: weights in units of alpha."""
    w = tl.exp(scores.to(tl.float32) - shift) + beta
    w = tl.where(w < 0.0, 0.0, w)  # keeps NaN
    return tl.where(inside, w, 0.0)


@triton.jit
def _chunk(
    log_score, offset, stride, begin, end, x_t, shift, beta,
    CHUNK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The weights of states begin .. begin + CHUNK - 1, 0 at x_t and from ``end`` on."""
    y = begin + tl.arange(0, CHUNK)
    at = y.to(tl.int64) * stride
    if MASKED:
        scores = tl.load(log_score + offset + at, mask=y < end, other=0.0)
    else:
        scores = tl.load(log_score + offset + at)
    return _weights(scores, (y < end) & (y != x_t), shift, beta)


@triton.jit
def _chunk_sums(
    log_score, offset, stride, head, dim, x_t, shift, beta,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, VEC: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """(CHUNKS,) float64: the weight of the edge, then of every chunk after it."""
    index = tl.arange(0, CHUNKS)
    y = tl.arange(0, EDGE)
    inside = (y < head) & (y != x_t)
    scores = tl.load(log_score + offset + y.to(tl.int64) * stride, mask=y < head, other=0.0)
    edge = tl.sum(_weights(scores, inside, shift, beta), 0).to(tl.float64)
    sums = tl.where(index == 0, edge, 0.0)
    rest = dim - head
    if CONTIGUOUS:
        start = tl.multiple_of(offset + head, VEC)
        body = rest // CHUNK * CHUNK
        for begin in range(0, body, CHUNK):
            w = _chunk(log_score, start, 1, begin, rest, x_t - head, shift, beta, CHUNK, False)
            total = tl.sum(w, 0).to(tl.float64)
            sums = tl.where(index == begin // CHUNK + 1, total, sums)
    else:
        start = offset + head * stride
        body = rest * 0
    for begin in range(body, rest, CHUNK):
        w = _chunk(log_score, start, stride, begin, rest, x_t - head, shift, beta, CHUNK, True)
        total = tl.sum(w, 0).to(tl.float64)
        sums = tl.where(index == begin // CHUNK + 1, total, sums)
    return sums


@triton.jit
def _draw(
    log_score, offset, stride, head, dim, x_t, shift, beta, sums, u1,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """The first state at which the running sum of weights, in natural order, passes u1 * total."""
    index = tl.arange(0, CHUNKS)
    running = tl.cumsum(sums, 0)
    target = u1 * tl.sum(sums, 0)
    last = tl.max(tl.where(sums > 0.0, index, 0), 0)
    chosen = tl.minimum(tl.sum(((running <= target) & (index < CHUNKS)).to(tl.int32), 0), last)
    before = tl.sum(tl.where(index < chosen, sums, 0.0), 0)
    chunk = tl.sum(tl.where(index == chosen, sums, 0.0), 0)
    share = (target - before) / tl.where(chunk > 0.0, chunk, 1.0)
    begin = tl.where(chosen == 0, 0, head + (chosen - 1) * CHUNK)
    end = tl.where(chosen == 0, head, dim)
    w = _chunk(log_score, offset, stride, begin, end, x_t, shift, beta, CHUNK, True).to(tl.float64)
    place = tl.arange(0, CHUNK)
    # Against the sum of these very weights: the first one was formed in float32.
    passed = tl.sum((tl.cumsum(w, 0) <= share * tl.sum(w, 0)).to(tl.int32), 0)
    # Rounding may leave the target past the chunk's end: its last state that has weight then.
    last_state = tl.max(tl.where(w > 0.0, place, 0), 0)
    return begin + tl.minimum(passed, last_state)


@triton.jit
def _reverse_step(
    log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab, stride_b, stride_l, stride_y,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr,
    CONTIGUOUS: tl.constexpr, VEC: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, i = row // length, row % length
    now = tl.load(x_t + row)
    noise, step = tl.load(sigma + b), tl.load(dsigma + b)
    u0, u1 = tl.load(u + 2 * row), tl.load(u + 2 * row + 1)
    valid = (noise > 0) & (noise < float("inf")) & (step >= 0) & (step < float("inf"))
    valid = valid & (now >= 0) & (now < dim)
    valid = valid & (u0 >= 0) & (u0 < 1) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        valid = valid & (now == vocab)
    result = now
    if valid:
        state = now.to(tl.int32)  # compared with every state: 32 bits are half the instructions
        offset = b * stride_b + i * stride_l
        head = dim * 0
        if CONTIGUOUS:
            head = first_aligned(offset, dim, VEC)
        shift = tl.full((), 0.0, tl.float32)
        sums = _chunk_sums(
            log_score, offset, stride_y, head, dim, state, shift, 0.0,
            CHUNK, CHUNKS, VEC, CONTIGUOUS,
        )  # fmt: skip
        total = tl.sum(sums, 0)
        if (total < 1e-30) | (total == float("inf")):  # overflowed or vanished in float32
            m = row_max(log_score, offset, stride_y, dim, state, CHUNK)
            shift = tl.maximum(m, -700.0)
            sums = _chunk_sums(
                log_score, offset, stride_y, head, dim, state, shift, 0.0,
                CHUNK, CHUNKS, VEC, CONTIGUOUS,
            )  # fmt: skip
            total = tl.sum(sums, 0)
        unit = tl.exp(-shift.to(tl.float64))
        alpha, beta, gamma = reverse_coefficients(
            noise, step, total, unit, vocab, ABSORBING, METHOD
        )
        lift = tl.full((), 0.0, tl.float32)
        if CLAMPED:
            lift = (beta / tl.where(alpha > 0.0, alpha, 1.0)).to(tl.float32)
            sums = _chunk_sums(
                log_score, offset, stride_y, head, dim, state, shift, lift,
                CHUNK, CHUNKS, VEC, CONTIGUOUS,
            )  # fmt: skip
            total = tl.sum(sums, 0)
        moving = alpha * total
        stay = tl.where(gamma > 0.0, gamma, 0.0)
        law = moving + stay
        drawable = (alpha > 0.0) & (law > 0.0) & (law < float("inf")) & (gamma == gamma)
        if drawable & (u0 * law < moving):
            result = _draw(
                log_score, offset, stride_y, head, dim, state, shift, lift, sums, u1,
                CHUNK, CHUNKS,
            ).to(tl.int64)  # fmt: skip
    tl.store(x_s + row, result)


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
) -> None:
    """Draw the next tokens into ``x_s`` (B, L) int64."""
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    chunks = triton.next_power_of_2(triton.cdiv(dim, SETTINGS["CHUNK"]) + 1)
    absorbing = graph == "absorbing"
    _reverse_step[(batch * length,)](
        log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab_size, *log_score.stride(),
        ABSORBING=absorbing, METHOD=METHODS[method].value,
        CLAMPED=not absorbing and method != "euler", CONTIGUOUS=log_score.stride(2) == 1,
        VEC=16 // log_score.element_size(), CHUNKS=chunks, **SETTINGS,
    )  # fmt: skip
