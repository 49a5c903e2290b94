"""One reverse step: one program per position reads its row and draws its next state.

    weight of y != x_t: max(0, alpha * exp(l_y) + beta);  weight of x_t: max(0, gamma)

``coefficients`` has alpha, beta and gamma, which depend on S, the sum of exp(l_y). ``chunks``
describes how a row is divided and how a state is drawn: one pass over the row forms S, u0 decides
whether the token moves, u1 selects a chunk, and only that chunk is read again. The uniform graph
has beta < 0, so its weights need S first: a row that may move is read a second time, from cache. A
temperature and top-p (``nucleus``) also need further passes over such rows.
csrc/common/reverse_row.h does the same.
"""

from typing import Any

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
    """Whether float32 has enough digits left where the terms of ``total`` cancel once beta is added
    (much noise removed at once, scores nearly equal)."""
    return total > 1e-2 * terms


@triton.jit
def _must_stay(alpha, beta, gamma, total, u0, dim):
    """Whether the token certainly stays, so that no second pass is needed.

    It does if no noise is removed, or if u0 keeps it even with alpha * S, the largest possible
    weight of moving. The factor covers rounding. Where float32 may have too few digits left, the
    answer is False and the second pass decides.
    """
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
    """Store the next state if the token moves; return whether range and precision sufficed.

    SCALED: the scores are raw outputs f of log scores f - ln E - ln V.
    FILTERED: a temperature or top-p applies.
    EXACT: everything is in float64, with the row shifted by its maximum, which always suffices.

    Values that the pass over the row does not need are loaded after it, to save registers.
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
        # In a small step most tokens certainly stay, and need no second pass.
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
def may_move(current, noise, step, u0, u1, dim, vocab, ABSORBING: tl.constexpr):
    """Whether the token can change in a reverse step and all inputs of its position are valid."""
    valid = (noise > 0) & (noise < float("inf")) & (step >= 0) & (step < float("inf"))
    valid = valid & (current >= 0) & (current < dim)
    valid = valid & (u0 >= 0) & (u0 < 1) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        valid = valid & (current == vocab)
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
    current = tl.load(x_t + row)
    noise, step = tl.load(sigma + b).to(tl.float64), tl.load(dsigma + b).to(tl.float64)
    u0, u1 = tl.load(u + 2 * row), tl.load(u + 2 * row + 1)
    tl.store(x_s + row, current)
    if may_move(current, noise, step, u0, u1, dim, vocab, ABSORBING):
        state = current.to(tl.int32)  # 32 bits: it is compared with all states
        scores = log_score + (b * strides[0] + i * strides[1])
        head = dim * 0
        if CONTIGUOUS:
            head = first_aligned(scores, dim, VEC)
        good = _step(
            (scores, strides[2], head, dim, state), sigma, dsigma, u, x_s, row, length, vocab,
            inverse_temperature, top_p, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
            False, CONTIGUOUS, VEC, VECTORS, WARPS, BLOCKS,
        )  # fmt: skip
        if good == 0:  # float32 overflowed, underflowed or lost too many digits
            _step(
                (scores, strides[2], dim * 0, dim, state), sigma, dsigma, u, x_s, row, length,
                vocab, inverse_temperature, top_p, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
                True, False, VEC, EXACT_BLOCK // (32 * VEC), WARPS, BLOCKS,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "length", "dim", "vocab", "stride_b", "stride_l", "stride_y", "rows", "rows_each",
    ]
)  # fmt: skip
def _reverse_step(
    log_score, x_t, sigma, dsigma, u, x_s, length, dim, vocab, stride_b, stride_l, stride_y,
    inverse_temperature, top_p, rows, rows_each,
    ABSORBING: tl.constexpr, METHOD: tl.constexpr, CLAMPED: tl.constexpr, SCALED: tl.constexpr,
    FILTERED: tl.constexpr, CONTIGUOUS: tl.constexpr, VEC: tl.constexpr, BLOCKS: tl.constexpr,
    SEVERAL_ROWS: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * rows_each
    inputs, strides = (log_score, x_t, sigma, dsigma, u), (stride_b, stride_l, stride_y)
    numbers = (length, dim, vocab, inverse_temperature, top_p)
    # A single row has no loop around it: with a loop, the compiler needs more registers.
    if not SEVERAL_ROWS:
        _position(
            inputs, numbers, strides, x_s, first, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
            CONTIGUOUS, VEC, BLOCK // UNIT, UNIT // (32 * VEC), BLOCKS,
        )  # fmt: skip
    else:
        for row in range(first, tl.minimum(first + rows_each, rows)):
            _position(
                inputs, numbers, strides, x_s, row, ABSORBING, METHOD, CLAMPED, SCALED, FILTERED,
                CONTIGUOUS, VEC, BLOCK // UNIT, UNIT // (32 * VEC), BLOCKS,
            )  # fmt: skip


def launch(log_score: Tensor, reverse: Any, x_s: Tensor) -> None:
    """Draw the next tokens from scores (B, L, dim) in any layout into ``x_s`` (B, L) int64."""
    size, length, dim = log_score.shape
    if (rows := size * length) == 0:
        return
    absorbing, vec = reverse.graph == "absorbing", 16 // log_score.element_size()
    clamped = not absorbing and reverse.method != "euler"
    filtered = reverse.inverse_temperature != 1 or reverse.top_p < 1
    rows_each = settings.rows_per_program(rows, log_score, absorbing)
    kind = "filtered" if filtered else "scaled" if reverse.scale_by_sigma else reverse.graph
    plan = settings.plan(f"{kind}_step", vec, dim, rows_each, _reverse_step, KEY)
    plan.kernel[(-(-rows // rows_each),)](
        log_score, reverse.x_t, reverse.sigma, reverse.dsigma, reverse.u, x_s,
        length, dim, reverse.vocab_size, *log_score.stride(),
        reverse.inverse_temperature, reverse.top_p, rows, rows_each,
        ABSORBING=absorbing, METHOD=METHODS[reverse.method].value,
        CLAMPED=clamped, SCALED=reverse.scale_by_sigma, FILTERED=filtered,
        CONTIGUOUS=log_score.stride(2) == 1, VEC=vec, BLOCKS=blocks(dim, plan.smallest),
        SEVERAL_ROWS=rows_each > 1, **plan.options,
    )  # fmt: skip


#: The kernel arguments on which autotuned settings depend.
KEY = ("dim", "ABSORBING", "METHOD", "CONTIGUOUS", "FILTERED")
