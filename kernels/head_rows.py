"""The rows of a linear head: they are listed, gathered before its products, and scattered after.

    loss = weight * (k + a * sum exp(f_y) - b * sum f_y - c * f_{x_0}), sums over y != x_t

``_touched`` lists the positions that have a loss. ``_gather`` gathers the hidden states and tokens
of some of them, and computes the coefficients of their losses and f at x_0. The blocks of the
vocabulary then add to the sums (``linear_score_entropy``). ``_scatter`` writes the losses, and the
gradients of the hidden states, to their positions.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.batches import numbers, options, tensors
from sedd_fast.kernels.coefficients import head_coefficients

#: Rows, and elements of each row, that a program copies at a time; positions that it checks.
ROWS, DEPTH, POSITIONS = 16, 128, 1024


@triton.jit
def _is_touched(x_t, row_weight, at, positions, mask, OPTIONS: tl.constexpr):
    found = at < positions
    if OPTIONS.absorbing:
        found = found & (tl.load(x_t + at, mask=at < positions, other=-1) == mask)
    if OPTIONS.weighted:  # NaN or infinity times 0 is NaN: the loss of such a weight is, too
        weight = tl.load(row_weight + at, mask=at < positions, other=0.0)
        found = weight * found.to(weight.dtype) != 0
    return found.to(tl.int32)


@triton.jit(do_not_specialize=["mask"])
def _touched(inputs, outputs, positions, mask, OPTIONS: tl.constexpr, BLOCK: tl.constexpr):
    """Lists positions in order. Each program counts the touched positions before its own, so that
    one launch suffices.

    ``inputs``: x_t and the weights. ``outputs``: the list, and how many positions are in it.
    """
    x_t, row_weight = inputs
    rows, count = outputs
    lane = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for block in range(0, tl.program_id(0)):
        before += _is_touched(x_t, row_weight, block * BLOCK + lane, positions, mask, OPTIONS)
    at = tl.program_id(0) * BLOCK + lane
    found = _is_touched(x_t, row_weight, at, positions, mask, OPTIONS)
    place = tl.sum(before, 0) + tl.cumsum(found, 0)
    tl.store(rows + place - 1, at.to(tl.int64), mask=found != 0)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(count, (tl.sum(before, 0) + tl.sum(found, 0)).to(tl.int64))


class Sizes(NamedTuple):
    """The rows of a launch, and the sizes of its batch."""

    rows: Any
    length: Any
    dim: Any
    vocab: Any
    mask: Any


@triton.jit
def _row(index, batch, i, sizes, OPTIONS: tl.constexpr):
    """Position, whether there is one, weight, whether all values are valid, x_t, x_0, a, b, c, k.

    ``scaled``: the coefficients for raw outputs f, in which E cancels.
    """
    at = tl.load(index + i, mask=i < sizes.rows, other=-1)
    here = at >= 0
    at = tl.maximum(at, 0)
    noise = tl.load(batch.sigma + at // sizes.length, mask=here, other=1.0)
    current = tl.load(batch.x_t + at, mask=here, other=0)
    clean = tl.load(batch.x_0 + at, mask=here, other=0)
    weight = tl.where(here, 1.0, 0.0).to(tl.float64)
    if OPTIONS.weighted:
        weight = tl.load(batch.row_weight + at, mask=here, other=0.0)
    valid = (noise > 0) & (noise < float("inf")) & (tl.abs(weight) < float("inf"))
    valid = valid & (current >= 0) & (current < sizes.dim)
    valid = valid & (clean >= 0) & (clean < sizes.dim) & (clean != sizes.mask)
    noise = tl.where(valid, noise, 1.0)
    a, b, c, k = head_coefficients(
        noise, current, clean, sizes.vocab, sizes.mask, OPTIONS.absorbing, OPTIONS.scaled
    )
    return at, here, weight, valid, current, clean, a, b, c, k


class Operands(NamedTuple):
    """Pointers to the hidden states, the weight and the bias of a head."""

    hidden: Any
    weight: Any
    bias: Any


class Gathered(NamedTuple):
    """Pointers to what ``_gather`` writes: hidden states, x_t and x_0, and terms of rows."""

    hidden: Any
    tokens: Any
    terms: Any


class GatherOptions(NamedTuple):
    """What ``_gather`` is compiled for: ``batches.Options``, whether a gradient of each loss and a
    bias are given, and the rows, and elements of each, that a program copies at a time.
    """

    absorbing: bool
    scaled: bool
    weighted: bool
    upstream: bool
    with_bias: bool
    rows: int = ROWS
    depth: int = DEPTH


# Numbers outside a tuple, so that they do not cause another compilation: see ``score_entropy``.
@triton.jit(do_not_specialize=["rows", "length", "dim", "vocab", "mask", "scale"])
def _gather(
    index, operands, batch, upstream, out, rows, length, dim, vocab, mask, width, scale, strides,
    OPTIONS: tl.constexpr,
):  # fmt: skip
    """``strides``: those of the hidden states (three), and of the weight."""
    hidden, weight, bias = operands
    gathered, tokens, terms = out
    stride_b, stride_l, stride_h, stride_w, stride_k = strides
    ROWS: tl.constexpr = OPTIONS.rows
    DEPTH: tl.constexpr = OPTIONS.depth
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at, here, row_factor, valid, current, clean, a, b, c, _ = _row(
        index, batch, i, Sizes(rows, length, dim, vocab, mask), OPTIONS
    )
    factor = row_factor * scale
    if OPTIONS.upstream:
        factor = factor * tl.load(upstream + at, mask=here, other=0.0)
    factor = tl.where(valid & (row_factor != 0), factor, 0.0)
    # a includes the weight, so that a * exp(f) overflows only where the weighted loss does.
    a = tl.where(valid, a * tl.abs(row_factor), 0.0)
    log_a = tl.where(a > 0, tl.log(tl.where(a > 0, a, 1.0)), -float("inf"))
    up = tl.where(a > 0, factor / tl.where(row_factor == 0, 1.0, tl.abs(row_factor)), 0.0)
    inside = i < rows
    tl.store(tokens + i, current.to(tl.int32), mask=inside)
    tl.store(tokens + rows + i, clean.to(tl.int32), mask=inside)
    tl.store(terms + i, log_a.to(tl.float32), mask=inside)
    tl.store(terms + rows + i, up.to(tl.float32), mask=inside)
    tl.store(terms + 2 * rows + i, (factor * b).to(tl.float32), mask=inside)
    tl.store(terms + 3 * rows + i, (factor * c).to(tl.float32), mask=inside)

    known = here & valid
    f = tl.zeros([ROWS], tl.float32)
    if OPTIONS.with_bias:
        f = tl.load(bias + clean, mask=known, other=0.0).to(tl.float32)
    source = (at // length * stride_b + at % length * stride_l)[:, None]
    into = i.to(tl.int64)[:, None] * width
    for begin in range(0, width, DEPTH):
        k = (begin + tl.arange(0, DEPTH))[None, :]
        part = k < width
        # Entries without a position or with an invalid value are not read: a NaN there would
        # spread through the products.
        h = tl.load(hidden + source + k * stride_h, mask=known[:, None] & part, other=0.0)
        h = h.to(gathered.dtype.element_ty)
        tl.store(gathered + into + k, h, mask=inside[:, None] & part)
        other = weight + clean[:, None] * stride_w + k * stride_k
        w = tl.load(other, mask=known[:, None] & part, other=0.0).to(h.dtype)
        f += tl.sum(h.to(tl.float32) * w.to(tl.float32), 1)
    tl.store(terms + 4 * rows + i, f, mask=inside)


class Scattered(NamedTuple):
    """Pointers to what ``_scatter`` reads of the rows, and to what it writes, of the positions.

    Attributes:
        terms, sums: of rows.
        total: gradients of the hidden states of rows.
        loss, gradient: of positions.
    """

    terms: Any
    sums: Any
    total: Any
    loss: Any
    gradient: Any


class ScatterOptions(NamedTuple):
    """What ``_scatter`` is compiled for: ``batches.Options``, whether there are gradients, and the
    rows, and elements of each, that a program copies at a time.
    """

    absorbing: bool
    scaled: bool
    weighted: bool
    with_hidden: bool
    rows: int = ROWS
    depth: int = DEPTH


@triton.jit
def scatter_rows(total, out, i, at, here, width, DEPTH: tl.constexpr):
    """Copy rows i of ``total`` to rows ``at`` of ``out``, where ``here``; both contiguous."""
    source, into = i.to(tl.int64)[:, None] * width, at[:, None] * width
    for begin in range(0, width, DEPTH):
        n = (begin + tl.arange(0, DEPTH))[None, :]
        inside = here[:, None] & (n < width)
        x = tl.load(total + source + n, mask=inside, other=0.0)
        tl.store(out + into + n, x.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "length", "dim", "vocab", "mask"])
def _scatter(
    index, batch, scattered, rows, length, dim, vocab, mask, width, OPTIONS: tl.constexpr
):  # fmt: skip
    terms, sums, total, loss, gradient = scattered
    ROWS: tl.constexpr = OPTIONS.rows
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at, here, weight, valid, _, _, a, b, c, k = _row(
        index, batch, i, Sizes(rows, length, dim, vocab, mask), OPTIONS
    )
    value = weight * k
    sum_exp = tl.load(sums + i, mask=here, other=0.0)  # includes the absolute weight
    value += tl.where(a > 0, tl.where(weight < 0, -sum_exp, sum_exp), 0.0)
    large = value
    if not OPTIONS.absorbing:
        sum_log = tl.load(sums + rows + i, mask=here, other=0.0)
        value -= tl.where(b > 0, weight * b * sum_log, 0.0)  # 0 * infinity would be NaN
    f = tl.load(terms + 4 * rows + i, mask=here, other=0.0).to(tl.float64)
    value -= tl.where(c > 0, weight * c * f, 0.0)
    value = tl.where(tl.abs(large) == float("inf"), large, value)  # it outgrows the other terms
    value = tl.where(weight != 0, tl.where(valid, value, float("nan")), 0.0)
    tl.store(loss + at, value.to(tl.float32), mask=here)
    if OPTIONS.with_hidden:
        scatter_rows(total, gradient, i, at, here, width, OPTIONS.depth)


def launch_touched(entropy: Any, rows: Tensor, count: Tensor) -> None:
    """Write the touched positions b * L + i in order into ``rows`` (B * L,), and how many there are
    into ``count`` (); int64.
    """
    known = options(entropy)._replace(scaled=False)  # makes no difference here
    _, x_t, _, weight = tensors(entropy)
    _touched[(max(1, triton.cdiv(x_t.numel(), POSITIONS)),)](
        (x_t, weight), (rows, count), x_t.numel(), entropy.mask_index, OPTIONS=known,
        BLOCK=POSITIONS, num_warps=4,
    )  # fmt: skip


def launch_gather(
    entropy: Any,
    index: Tensor,
    operands: tuple[Tensor, Tensor, Tensor | None],
    grad_scale: Tensor | float,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Gather some rows of a head for its products.

    Args:
        index: (R,) int64 positions, -1 for none.
        operands: hidden (B, L, H) and weight (dim, H) in any dtypes and layouts, bias (dim,) or
            None.
        grad_scale: factor of all gradients, a number or (B, L) float64, contiguous.
        out: hidden states (R, H), 0 where there is no position; x_t and x_0, (2, R) int32; terms,
            (5, R) float32: ln a, the factor of a * exp(f) in the gradient, the b and c that the
            gradient subtracts, and f at x_0.
    """
    hidden, weight, bias = operands
    upstream = isinstance(grad_scale, Tensor)
    _gather[(triton.cdiv(len(index), ROWS),)](
        index, Operands(hidden, weight, weight if bias is None else bias), tensors(entropy),
        grad_scale if upstream else out[2], Gathered(*out),
        len(index), *numbers(entropy), hidden.shape[2], 1.0 if upstream else grad_scale,
        (*hidden.stride(), *weight.stride()),
        OPTIONS=GatherOptions(*options(entropy), upstream, bias is not None), num_warps=4,
    )  # fmt: skip


def launch_scatter(
    entropy: Any,
    index: Tensor,
    terms: Tensor,
    sums: Tensor,
    loss: Tensor,
    gradient: tuple[Tensor, Tensor] | None,
) -> None:
    """Write weighted losses to their positions in ``loss`` (B, L) float32; NaN where an input is
    invalid.

    Args:
        terms: (5, R), from `launch_gather`.
        sums: (1 or 2, R) float64: sums of abs(weight) * a * exp(f), and of f (uniform graph).
        gradient: (R, H) float32 gradients of the hidden states, and the output (B, L, H) for them,
            contiguous; or None.
    """
    total, into = (terms, terms) if gradient is None else gradient
    _scatter[(triton.cdiv(len(index), ROWS),)](
        index, tensors(entropy), Scattered(terms, sums, total, loss, into),
        len(index), *numbers(entropy), total.shape[1],
        OPTIONS=ScatterOptions(*options(entropy), gradient is not None), num_warps=4,
    )  # fmt: skip
