"""Score entropy and its gradient: one program per position, one pass over its row.

    loss        = weight * (a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k), sums over y != x_t
    gradient_y  = grad_scale * (a * exp(l_y) - b - c * [y = x_0]), 0 at y = x_t

``coefficients`` has a, b, c and k; grad_scale is weight * scale * upstream. ``rows`` describes how
a row is divided: an edge before the first aligned state, whole blocks, and a tail. A row whose sum
overflows in float32 is read a second time in float64. A position that is not touched (absorbing
graph and not masked, or weight 0) does not read its row; its gradient row is filled with zeros.

One kernel computes the loss alone, the gradient alone (a backward that recomputes the sums), or
both in one pass.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.batches import numbers, tensors
from sedd_fast.kernels.coefficients import entropy_coefficients
from sedd_fast.kernels.rows import (
    EXACT_BLOCK,
    Row,
    exponential,
    fill_zero,
    row_pass,
    score_alignment,
    strided_pass,
)


@triton.jit
def _term(scores, is_x_t, is_x_0, terms, HAS_TOKENS: tl.constexpr, WITH_GRAD: tl.constexpr):
    """exp(l) and l, 0 at x_t, and the gradient ga * exp(l) - gb - gc [y = x_0]."""
    ga, gb, gc = terms
    if ga.dtype == tl.float64:
        scores = scores.to(tl.float64)
    e = exponential(scores)
    l = scores.to(e.dtype)
    g = e
    if WITH_GRAD:
        g = ga * e - gb
    if HAS_TOKENS:
        if WITH_GRAD:
            g = tl.where(is_x_t, 0.0, g - tl.where(is_x_0, gc, 0.0))
        e = tl.where(is_x_t, 0.0, e)
        l = tl.where(is_x_t, 0.0, l)
    return e, l, g


class Inputs(NamedTuple):
    """Pointers to what the kernel reads."""

    log_score: Any
    sigma: Any
    x_t: Any
    x_0: Any
    row_weight: Any
    upstream: Any


class Outputs(NamedTuple):
    """Pointers to what the kernel writes."""

    loss: Any
    grad: Any


class Sizes(NamedTuple):
    """The numbers of a launch."""

    scale: Any
    length: Any
    dim: Any
    vocab: Any
    mask: Any
    stride_b: Any
    stride_l: Any
    stride_y: Any
    grad_stride_b: Any
    grad_stride_l: Any


class Options(NamedTuple):
    """What the kernel is compiled for.

    Attributes:
        absorbing: graph; else uniform.
        weighted, upstream: whether ``row_weight`` and ``upstream`` are given.
        with_loss, with_grad: what is computed.
        with_second: whether the sum of l is needed.
        contiguous: the scores of a row.
        score_alignment: see ``rows.score_alignment``.
        several_rows: whether a program processes more than one.
    """

    absorbing: bool
    weighted: bool
    upstream: bool
    with_loss: bool
    with_grad: bool
    with_second: bool
    contiguous: bool
    score_alignment: int
    several_rows: bool


@triton.jit
def _position(inputs, outputs, sizes, row, OPTIONS: tl.constexpr, BLOCK: tl.constexpr):
    """Loss and gradient of one position."""
    b, i = row // sizes.length, row % sizes.length
    noise = tl.load(inputs.sigma + b).to(tl.float64)
    current, clean = tl.load(inputs.x_t + row), tl.load(inputs.x_0 + row)
    weight = tl.full((), 1.0, tl.float64)
    if OPTIONS.weighted:
        weight = tl.load(inputs.row_weight + row).to(tl.float64)
    grad_scale = weight * sizes.scale
    if OPTIONS.upstream:
        grad_scale = grad_scale * tl.load(inputs.upstream + row).to(tl.float64)
    dim, vocab, mask = sizes.dim, sizes.vocab, sizes.mask
    valid = (noise > 0) & (noise < float("inf")) & (tl.abs(weight) < float("inf"))
    valid = valid & (current >= 0) & (current < dim)
    valid = valid & (clean >= 0) & (clean < dim) & (clean != mask)
    value = tl.where(valid, 0.0, float("nan")).to(tl.float64)
    grad_row = outputs.grad + (b * sizes.grad_stride_b + i * sizes.grad_stride_l)
    touched = valid & (weight != 0) & (grad_scale != 0)
    if OPTIONS.absorbing:
        touched = touched & (current == mask)
    if touched:
        # Tokens are compared with all states of a block: 32 bits take half the instructions of 64.
        state, target = current.to(tl.int32), clean.to(tl.int32)
        scores = inputs.log_score + (b * sizes.stride_b + i * sizes.stride_l)
        of_row = Row(scores, grad_row, sizes.stride_y, dim, state, target)
        ga, gb, gc = tl.zeros((), tl.float64), tl.zeros((), tl.float64), tl.zeros((), tl.float64)
        if OPTIONS.with_grad:
            a, b_, c, _ = entropy_coefficients(
                noise, current, clean, vocab, mask, OPTIONS.absorbing
            )
            ga, gb, gc = grad_scale * a, grad_scale * b_, grad_scale * c
        fp32_terms = (ga.to(tl.float32), gb.to(tl.float32), gc.to(tl.float32))
        if OPTIONS.contiguous:
            sum_exp, sum_log = row_pass(of_row, fp32_terms, _term, OPTIONS, BLOCK)
        else:
            sum_exp, sum_log = strided_pass(
                of_row, fp32_terms, _term, OPTIONS.with_grad, BLOCK.unit
            )
        if sum_exp == float("inf"):  # float32 overflowed; the true value may be finite
            sum_exp, sum_log = strided_pass(
                of_row, (ga, gb, gc), _term, OPTIONS.with_grad, EXACT_BLOCK
            )
        if OPTIONS.with_loss:  # not before the pass, which then needs sixteen registers less
            a, b_, c, k = entropy_coefficients(
                noise, current, clean, vocab, mask, OPTIONS.absorbing
            )
            l_0 = tl.load(scores + clean * sizes.stride_y).to(tl.float64)
            large = k + a * sum_exp
            value = large - tl.where(b_ > 0, b_ * sum_log, 0.0)  # 0 * infinity would be NaN
            value -= tl.where(c > 0, c * l_0, 0.0)
            # An infinite ``large`` outgrows the other terms.
            value = tl.where(large == float("inf"), large, value) * weight
    else:
        if OPTIONS.with_grad:
            fill_zero(grad_row, dim, BLOCK.vec, BLOCK.unit)
    if OPTIONS.with_loss:
        tl.store(outputs.loss + row, value.to(outputs.loss.dtype.element_ty))


# Numbers that must not cause another compilation are parameters of their own: in a tuple, Triton
# specializes all numbers, for 1 and for multiples of 16.
@triton.jit(
    do_not_specialize=[
        "scale", "length", "dim", "vocab", "mask", "stride_b", "stride_l", "stride_y",
        "grad_stride_b", "grad_stride_l", "rows", "rows_each",
    ]
)  # fmt: skip
def _score_entropy(
    inputs, outputs, scale, length, dim, vocab, mask,
    stride_b, stride_l, stride_y, grad_stride_b, grad_stride_l, rows, rows_each,
    OPTIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * rows_each
    sizes = Sizes(
        scale,
        length,
        dim,
        vocab,
        mask,
        stride_b,
        stride_l,
        stride_y,
        grad_stride_b,
        grad_stride_l,
    )
    # A single row has no loop around it: with a loop, the compiler needs more registers.
    if not OPTIONS.several_rows:
        _position(inputs, outputs, sizes, first, OPTIONS, BLOCK)
    else:
        for row in range(first, tl.minimum(first + rows_each, rows)):
            _position(inputs, outputs, sizes, row, OPTIONS, BLOCK)


def launch(
    log_score: Tensor,
    entropy: Any,
    upstream: Tensor | None,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float,
) -> None:
    """Compute losses, gradients, or both.

    Args:
        log_score: (B, L, dim) in any layout.
        entropy: its noise and weights are float32 or float64.
        upstream: (B, L) float32 or float64, multiplied into each gradient row; or None.
        loss: (B, L) float32 output, or None.
        grad: (B, L, dim) output of unit stride over states, or None.
        scale: factor of all gradients.
    """
    rows, dim = log_score.shape[:2].numel(), log_score.shape[2]
    if rows == 0:
        return
    unused = entropy.x_t  # a pointer that is never read
    absorbing = entropy.graph == "absorbing"
    # As many states as fit into 16 bytes of the larger dtype, so that a thread stores what it
    # loads.
    size = log_score.element_size()
    vec = 16 // (size if grad is None else max(size, grad.element_size()))
    # Without a gradient, a row that is not touched costs only the start of a program.
    rows_each = settings.rows_per_program(rows, log_score, absorbing and grad is None)
    kind = f"{entropy.graph}_{'loss' if grad is None else 'gradient'}"
    plan = settings.plan(kind, vec, dim, rows_each, _score_entropy, log_score.dtype)
    options = Options(
        absorbing,
        entropy.row_weight is not None,
        upstream is not None,
        with_loss=loss is not None,
        with_grad=grad is not None,
        with_second=loss is not None and not absorbing,
        contiguous=log_score.stride(2) == 1,
        score_alignment=score_alignment(log_score, grad, vec),
        several_rows=rows_each > 1,
    )
    plan.kernel[(-(-rows // rows_each),)](
        Inputs(log_score, *tensors(entropy), unused if upstream is None else upstream),
        Outputs(unused if loss is None else loss, unused if grad is None else grad),
        scale, *numbers(entropy), *log_score.stride(),
        *(grad.stride()[:2] if grad is not None else (0, 0)), rows, rows_each,
        OPTIONS=options, **plan.options,
    )  # fmt: skip
