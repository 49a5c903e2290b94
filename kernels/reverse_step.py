"""One reverse step: one program a position reads its row and draws its next state.

The draw is that of chunks.py: one pass, and one chunk again. The weights of the uniform graph,
clamped at 0, need the sum S first: a second pass, which finds the row in cache, and only for the
rows that may move. So do a temperature and top-p (nucleus.py). The same decisions as
csrc/common/reverse_row.h.
"""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.chunks import blocks, chunk_sums, draw
from sedd_fast.kernels.coefficients import (
    ANALYTIC,
    DENOISE,
    EULER,
    output_scale,
    reverse_coefficients,
)
from sedd_fast.kernels.nucleus import filtered_sums
from sedd_fast.kernels.rows import EXACT_BLOCK, first_aligned, row_max

METHODS = {"analytic": ANALYTIC, "euler": EULER, "denoise": DENOISE}


@triton.jit
def _resolved(total, terms):
    """Whether float32 resolves what is left of ``terms`` once beta is added: they may cancel (much
    noise removed at once, scores nearly equal)."""
    return total > 1e-2 * terms


@triton.jit
def _must_stay(alpha, beta, gamma, total, u0, dim):
    """Whether it stays whatever clamping takes away: the weight of moving is at most alpha * S, or
    no noise is removed. The factor is for rounding; where float32 might not resolve the weights the
    second pass finds out."""
    least = total + beta / tl.where(alpha > 0.0, alpha, 1.0) * dim.to(tl.float64)
    stay = u0 * tl.where(gamma > 0.0, gamma, 0.0)
    certain = stay >= (1.0 - u0) * alpha * total * (1.0 + 1e-6)
    return (alpha == 0.0) | (_resolved(least, total) & certain)


@triton.jit
def _step(
    at, sigma, dsigma, u, x_s, row, length, vocab, inverse_temperature, top_p,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    FILTERED: tl.constexpr, EXACT: tl.constexpr, VECTORIZED: tl.constexpr, VEC: tl.constexpr,
    VECTORS: tl.constexpr, WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Store the next state if it moves; returns whether the arithmetic is good enough.

    SCALED: the scores are raw outputs f of log scores f - ln E - ln V.
    FILTERED: a temperature or top-p changes the shares of the states, of the rows that move.
    EXACT: everything in float64, the row shifted by its maximum; always good enough. What the pass
    over the row does not need is loaded after it: kept, it would cost the pass registers.
    """
    scores, stride, _, dim, x_t = at
    if EXACT:
        shift = row_max(scores, stride, dim, x_t, VECTORS * 32 * VEC).to(tl.float64)
        shift = tl.maximum(shift, -700.0)  # exp(700) is still a float64
    else:
        shift = tl.zeros((), tl.float32)
    beta = shift * 0.0
    least = tl.full((), -float("inf"), tl.float32)
    edge, sums, total = chunk_sums(
        at,
        (shift, beta, inverse_temperature, least),
        True,
        False,
        VECTORIZED,
        VEC,
        VECTORS,
        WARPS,
        BLOCKS,
    )
    good = (total > 1e-30) & (total < float("inf"))
    if EXACT:
        good = total == total
    b = row // length
    noise, step = tl.load(sigma + b).to(tl.float64), tl.load(dsigma + b).to(tl.float64)
    u0 = tl.load(u + 2 * row)
    scale = tl.full((), 1.0, tl.float64)
    if SCALED:
        scale = output_scale(noise, vocab)
    alpha, constant, gamma = reverse_coefficients(
        noise, step, total * scale, tl.exp(-shift.to(tl.float64)), vocab, ABSORBING, METHOD
    )
    alpha *= scale
    may_move = good
    if CLAMPED:
        # Most rows of a small step stay for certain, and need no second pass.
        may_move = good & (_must_stay(alpha, constant, gamma, total, u0, dim) == 0)
        if may_move:
            whole = total
            if FILTERED:
                edge, sums, whole, shift, least = filtered_sums(
                    at, shift, inverse_temperature, top_p, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS
                )
                alpha *= total / whole
            beta = (constant / alpha).to(beta.dtype)
            edge, sums, total = chunk_sums(
                at, (shift, beta, inverse_temperature, least), False, FILTERED,
                VECTORIZED, VEC, VECTORS, WARPS, BLOCKS,
            )  # fmt: skip
            if not EXACT:
                good = _resolved(total, whole)
    moving = alpha * total
    mass = moving + tl.where(gamma > 0.0, gamma, 0.0)
    drawable = (alpha > 0.0) & (mass > 0.0) & (mass < float("inf")) & (gamma == gamma)
    if good & may_move & drawable & (u0 * mass < moving):
        if FILTERED and not CLAMPED:
            edge, sums, total, shift, least = filtered_sums(
                at, shift, inverse_temperature, top_p, VECTORIZED, VEC, VECTORS, WARPS, BLOCKS
            )
        u1 = tl.load(u + 2 * row + 1)
        params = (shift, beta, inverse_temperature, least)
        drawn = draw(
            at, params, edge, sums, total, u1, not CLAMPED, FILTERED, VECTORIZED, VECTORS * 32 * VEC
        )
        tl.store(x_s + row, drawn.to(tl.int64))
    return good


@triton.jit
def may_move(now, noise, step, u0, u1, dim, vocab, ABSORBING: tl.constexpr):
    """Whether noise touched the token, and nothing that the params is made of is out of range."""
    valid = (noise > 0) & (noise < float("inf")) & (step >= 0) & (step < float("inf"))
    valid = valid & (now >= 0) & (now < dim)
    valid = valid & (u0 >= 0) & (u0 < 1) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        valid = valid & (now == vocab)
    return valid


@triton.jit
def _position(
    inputs, numbers, strides, x_s, row,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    FILTERED: tl.constexpr, CONTIGUOUS: tl.constexpr, VEC: tl.constexpr, VECTORS: tl.constexpr,
    WARPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The step of one position."""
    log_score, x_t, sigma, dsigma, u = inputs
    length, dim, vocab, inverse_temperature, top_p = numbers
    b, i = row // length, row % length
    now = tl.load(x_t + row)
    noise, step = tl.load(sigma + b).to(tl.float64), tl.load(dsigma + b).to(tl.float64)
    u0, u1 = tl.load(u + 2 * row), tl.load(u + 2 * row + 1)
    tl.store(x_s + row, now)
    if may_move(now, noise, step, u0, u1, dim, vocab, ABSORBING):
        state = now.to(tl.int32)  # compared with every state: 32 bits are half the instructions
        scores = log_score + (b * strides[0] + i * strides[1])
        head = dim * 0
        if CONTIGUOUS:
            head = first_aligned(scores, dim, VEC)
        good = _step(
            (scores, strides[2], head, dim, state), sigma, dsigma, u, x_s, row, length, vocab,
            inverse_temperature, top_p, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
            False, CONTIGUOUS, VEC, VECTORS, WARPS, BLOCKS,
        )  # fmt: skip
        if good == 0:  # overflowed, vanished or cancelled in float32
            _step(
                (scores, strides[2], dim * 0, dim, state), sigma, dsigma, u, x_s, row, length,
                vocab, inverse_temperature, top_p, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
                True, False, VEC, EXACT_BLOCK // (32 * VEC), WARPS, BLOCKS,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["length", "dim", "vocab", "stride_b", "stride_l", "stride_y", "rows", "each"]
)
def _reverse_step(
    log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab, stride_b, stride_l, stride_y,
    inverse_temperature, top_p, rows, each,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    FILTERED: tl.constexpr, CONTIGUOUS: tl.constexpr, VEC: tl.constexpr, BLOCKS: tl.constexpr,
    SEVERAL: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * each
    inputs, strides = (log_score, x_t, sigma, dsigma, u), (stride_b, stride_l, stride_y)
    numbers = (length, dim, vocab, inverse_temperature, top_p)
    # One row without a loop: with one the compiler keeps more in registers.
    if not SEVERAL:
        _position(
            inputs, numbers, strides, x_s, first, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
            CONTIGUOUS, VEC, BLOCK // UNIT, UNIT // (32 * VEC), BLOCKS,
        )  # fmt: skip
    else:
        for row in range(first, tl.minimum(first + each, rows)):
            _position(
                inputs, numbers, strides, x_s, row, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
                CONTIGUOUS, VEC, BLOCK // UNIT, UNIT // (32 * VEC), BLOCKS,
            )  # fmt: skip


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
    inverse_temperature: float = 1.0,
    top_p: float = 1.0,
) -> None:
    """Draw the next tokens into ``x_s`` (B, L) int64.

    ``scale_by_sigma``: the scores are raw outputs f of log scores f - ln E - ln V.
    """
    batch, length, dim = log_score.shape
    if batch * length == 0:
        return
    score_bytes, absorbing = log_score.element_size(), graph == "absorbing"
    clamped, filtered = not absorbing and method != "euler", inverse_temperature != 1 or top_p < 1
    rows, vec = batch * length, 16 // score_bytes
    each = settings.rows_a_program(rows, log_score, absorbing)
    kind = f"{'filtered' if filtered else 'scaled' if scale_by_sigma else graph}_step"
    plan = settings.plan(kind, vec, dim, each, _reverse_step, KEY)
    plan.kernel[(-(-rows // each),)](
        log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab_size, *log_score.stride(),
        inverse_temperature, top_p, rows, each, ABSORBING=absorbing, METHOD=METHODS[method].value,
        CLAMPED=clamped, SCALED=scale_by_sigma, FILTERED=filtered,
        CONTIGUOUS=log_score.stride(2) == 1, VEC=vec, BLOCKS=blocks(dim, plan.smallest),
        SEVERAL=each > 1, **plan.options,
    )  # fmt: skip


#: What a choice of settings depends on, where it is timed.
KEY = ("dim", "ABSORBING", "METHOD", "CONTIGUOUS", "FILTERED")
