"""One reverse step: one program per position reads its row and draws its next state.

    weight of y != x_t: alpha * max(0, exp(l_y) + beta);  weight of x_t: max(0, gamma)

``coefficients`` has alpha, beta and gamma, which depend on S, the sum of exp(l_y). ``chunks``
describes how a row is divided and how a state is drawn: one pass over the row forms S, u0 decides
whether the token moves, u1 selects a chunk, and only that chunk is read again. The uniform graph
has beta < 0, so its weights need S first: a row that may move is read a second time, from cache. A
temperature and top-p (``nucleus``) also need further passes over such rows.
csrc/common/reverse_row.h does the same.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.chunks import Chunks, RowOfChunks, Weighting, blocks, chunk_sums, draw
from sedd_fast.kernels.coefficients import (
    ANALYTIC,
    DENOISE,
    EULER,
    Noise,
    log_output_scale,
    removed_noise,
    reverse_coefficients,
    row_shift,
    uniform_excess,
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
    least = total + beta * dim.to(tl.float64)
    stay = u0 * tl.where(gamma > 0.0, gamma, 0.0)
    certain = stay >= (1.0 - u0) * alpha * total * (1.0 + 1e-6)
    return (alpha == 0.0) | (_resolved(least, total) & certain)


class Pointers(NamedTuple):
    """What the kernel reads, and x_s, which it writes."""

    log_score: Any
    x_t: Any
    sigma: Any
    dsigma: Any
    u: Any
    x_s: Any


class Sizes(NamedTuple):
    """The numbers of a launch."""

    length: Any
    dim: Any
    vocab: Any
    mask: Any
    stride_b: Any
    stride_l: Any
    stride_y: Any
    inverse_temperature: Any
    top_p: Any


class Options(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        absorbing: graph; else uniform.
        method: a value of METHODS.
        clamped: beta may be negative, so weights may be clamped to 0.
        scaled: the scores are raw outputs f of log scores f - ln E - ln V.
        filtered: a temperature or top-p applies.
        contiguous: the scores of a row.
        blocks: size of the axis of blocks.
        several_rows: whether a program processes more than one.
    """

    absorbing: bool
    method: int
    clamped: bool
    scaled: bool
    filtered: bool
    contiguous: bool
    blocks: int
    several_rows: bool


@triton.jit
def _step(pointers, sizes, position, row, chunks, OPTIONS: tl.constexpr):
    """Store the next state if the token moves; return whether range and precision sufficed.

    If the chunks are exact, everything is in float64, with the row shifted by its maximum, which
    always suffices.

    Values that the pass over the row does not need are loaded after it, to save registers.
    """
    CLAMPED: tl.constexpr = OPTIONS.clamped
    FILTERED: tl.constexpr = OPTIONS.filtered
    inverse_temperature, top_p, vocab = sizes.inverse_temperature, sizes.top_p, sizes.vocab
    if chunks.exact:
        shift = row_max(row.scores, row.stride, row.dim, row.x_t, chunks.size).to(tl.float64)
        shift = row_shift(shift, OPTIONS.absorbing)
    else:
        shift = tl.zeros((), tl.float32)
    beta = shift * 0.0
    least = tl.full((), -float("inf"), tl.float32)
    edge, sums, total = chunk_sums(
        row, Weighting(shift, beta, inverse_temperature, least, True, False), chunks
    )
    good = (total > 1e-30) & (total < float("inf"))
    if chunks.exact:
        good = total == total
    b = position // sizes.length
    noise = Noise(
        tl.load(pointers.sigma + b).to(tl.float64), tl.load(pointers.dsigma + b).to(tl.float64)
    )
    u0 = tl.load(pointers.u + 2 * position)
    of_scores = shift.to(tl.float64)
    if OPTIONS.scaled:  # the row holds raw outputs
        of_scores -= log_output_scale(noise.sigma, vocab)
    alpha, constant, gamma = reverse_coefficients(
        noise, total, of_scores, vocab, OPTIONS.absorbing, OPTIONS.method
    )
    may_move = good
    unit, factor = of_scores * 0.0, of_scores * 0.0 + 1.0
    if CLAMPED:
        # In a small step most tokens certainly stay, and need no second pass.
        may_move = good & (_must_stay(alpha, constant, gamma, total, u0, row.dim) == 0)
        if may_move:
            whole = total
            if FILTERED:
                edge, sums, whole, shift, least = filtered_sums(
                    row, shift, inverse_temperature, top_p, chunks
                )
                factor = total / whole
            if chunks.exact:
                # Where much noise is removed, the terms of exp(l) + beta may cancel.
                kept, lost = removed_noise(noise, OPTIONS.method)
                one = tl.exp(-of_scores)
                _, _, deviations = chunk_sums(
                    row,
                    Weighting(
                        shift, beta, inverse_temperature, least, True, FILTERED, True, one, factor
                    ),
                    chunks,
                )
                excess = uniform_excess(kept, lost, vocab, deviations, one)
                far = lost > 0.5
                unit = tl.where(far, one, 0.0)
                gamma = tl.where(far, (vocab.to(tl.float64) * kept + lost) * excess, gamma)
                # Else factor * exp(l) + beta are the weights in units of the same alpha.
                beta = tl.where(far, excess, constant)
                edge, sums, total = chunk_sums(
                    row,
                    Weighting(
                        shift, beta, inverse_temperature, least, False, FILTERED, True, unit, factor
                    ),
                    chunks,
                )
            else:
                alpha *= factor
                beta = (constant / factor).to(beta.dtype)
                edge, sums, total = chunk_sums(
                    row, Weighting(shift, beta, inverse_temperature, least, False, FILTERED), chunks
                )
                good = _resolved(total, whole)
    moving = alpha * total
    mass = moving + tl.where(gamma > 0.0, gamma, 0.0)
    drawable = (alpha > 0.0) & (mass > 0.0) & (mass < float("inf")) & (gamma == gamma)
    if good & may_move & drawable & (u0 * mass < moving):
        if FILTERED and not CLAMPED:
            edge, sums, total, shift, least = filtered_sums(
                row, shift, inverse_temperature, top_p, chunks
            )
        u1 = tl.load(pointers.u + 2 * position + 1)
        PLAIN: tl.constexpr = not CLAMPED
        drawn = draw(
            row,
            Weighting(
                shift, beta, inverse_temperature, least, PLAIN, FILTERED,
                CLAMPED and chunks.exact, unit, factor,
            ),
            (edge, sums, total), u1, chunks,
        )  # fmt: skip
        tl.store(pointers.x_s + position, drawn.to(tl.int64))
    return good


@triton.jit
def may_move(current, noise, uniforms, dim, mask, ABSORBING: tl.constexpr):
    """Whether the token can change in a reverse step and all inputs of its position are valid."""
    sigma, dsigma = noise
    u0, u1 = uniforms
    valid = (sigma > 0) & (sigma < float("inf")) & (dsigma >= 0) & (dsigma < float("inf"))
    valid = valid & (current >= 0) & (current < dim)
    valid = valid & (u0 >= 0) & (u0 < 1) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        valid = valid & (current == mask)
    return valid


@triton.jit
def _position(pointers, sizes, position, OPTIONS: tl.constexpr, BLOCK: tl.constexpr):
    """The step of one position."""
    VEC: tl.constexpr = BLOCK.vec
    WARPS: tl.constexpr = BLOCK.unit // (32 * VEC)
    SIZE: tl.constexpr = BLOCK.states // WARPS
    BLOCKS: tl.constexpr = OPTIONS.blocks
    CONTIGUOUS: tl.constexpr = OPTIONS.contiguous
    dim = sizes.dim
    b, i = position // sizes.length, position % sizes.length
    current = tl.load(pointers.x_t + position)
    noise = Noise(
        tl.load(pointers.sigma + b).to(tl.float64), tl.load(pointers.dsigma + b).to(tl.float64)
    )
    uniforms = (tl.load(pointers.u + 2 * position), tl.load(pointers.u + 2 * position + 1))
    tl.store(pointers.x_s + position, current)
    if may_move(current, noise, uniforms, dim, sizes.mask, OPTIONS.absorbing):
        state = current.to(tl.int32)  # 32 bits: it is compared with all states
        scores = pointers.log_score + (b * sizes.stride_b + i * sizes.stride_l)
        head = dim * 0
        if CONTIGUOUS:
            head = first_aligned(scores, dim, VEC)
        row = RowOfChunks(scores, sizes.stride_y, head, dim, state)
        good = _step(
            pointers, sizes, position, row,
            Chunks(False, CONTIGUOUS, VEC, WARPS, BLOCKS, SIZE), OPTIONS,
        )  # fmt: skip
        if good == 0:  # float32 overflowed, underflowed or lost too many digits
            _step(
                pointers, sizes, position, row,
                Chunks(True, False, VEC, WARPS, BLOCKS, EXACT_BLOCK), OPTIONS,
            )  # fmt: skip


# Numbers outside a tuple, so that they do not cause another compilation: see ``score_entropy``.
@triton.jit(
    do_not_specialize=[
        "length", "dim", "vocab", "mask", "stride_b", "stride_l", "stride_y", "rows", "rows_each",
    ]
)  # fmt: skip
def _reverse_step(
    pointers, length, dim, vocab, mask, stride_b, stride_l, stride_y, filtering, rows, rows_each,
    OPTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``filtering``: the inverse temperature and top-p."""
    first = tl.program_id(0).to(tl.int64) * rows_each
    inverse_temperature, top_p = filtering
    sizes = Sizes(
        length, dim, vocab, mask, stride_b, stride_l, stride_y, inverse_temperature, top_p
    )
    # A single row has no loop around it: with a loop, the compiler needs more registers.
    if not OPTIONS.several_rows:
        _position(pointers, sizes, first, OPTIONS, BLOCK)
    else:
        for row in range(first, tl.minimum(first + rows_each, rows)):
            _position(pointers, sizes, row, OPTIONS, BLOCK)


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
    plan = settings.plan(f"{kind}_step", vec, dim, rows_each, _reverse_step, log_score.dtype)
    options = Options(
        absorbing,
        METHODS[reverse.method].value,
        clamped,
        scaled=reverse.scale_by_sigma,
        filtered=filtered,
        contiguous=log_score.stride(2) == 1,
        blocks=blocks(dim, plan.smallest),
        several_rows=rows_each > 1,
    )
    plan.kernel[(-(-rows // rows_each),)](
        Pointers(log_score, reverse.x_t, reverse.sigma, reverse.dsigma, reverse.u, x_s),
        length, dim, reverse.vocab_size, reverse.mask_index, *log_score.stride(),
        (reverse.inverse_temperature, reverse.top_p), rows, rows_each,
        OPTIONS=options, **plan.options,
    )  # fmt: skip
