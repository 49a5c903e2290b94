"""How a row of log scores is read, exponentiated and summed.

    total = sum over y != x_t of u_y,   second = sum over y != x_t of v_y

where a kernel's SUMMANDS function computes u_y, v_y and the gradient of each state in one pass.

A row of 50,258 bf16 numbers need not start at a multiple of 16 bytes, and the compiler makes a
masked load only as wide as the mask is known to be constant. So a row is divided into three parts:
the edge, which ends at the first address that is a multiple of 16 bytes; whole blocks, read without
a mask in 16-byte loads; and the tail.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

EDGE = tl.constexpr(16)  # at least the states before the first aligned one, in any dtype
#: States at a time where a row is read again in float64: few, because every program would need the
#: registers of this rare path.
EXACT_BLOCK = tl.constexpr(256)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def first_aligned(row, dim, VEC: tl.constexpr):
    """States before the first one whose address is a multiple of VEC elements; int32.

    Alignment is that of the address, not of the offset, because a view may begin anywhere.
    """
    SIZE: tl.constexpr = row.dtype.element_ty.primitive_bitwidth // 8
    index = row.to(tl.int64) // SIZE
    return tl.minimum(((VEC - index % VEC) % VEC).to(tl.int32), dim)


def score_alignment(log_score: Tensor, grad: Tensor | None, vec: int) -> int:
    """The alignment of the scores, in states, where the gradient is aligned to ``vec`` states.

    ``vec``: loads are as wide as stores. 1: single states only.
    """
    if grad is None:
        return vec
    start = log_score.data_ptr() // log_score.element_size()
    start -= grad.data_ptr() // grad.element_size()
    of, to = log_score.stride(), grad.stride()
    return math.gcd(vec, start, of[0] - to[0], of[1] - to[1])


@triton.jit
def exponential(l):
    """exp(l) to two units in the last place at any l; float64 for float64 scores, else float32.

    tl.exp(l) computes 2^(l * log2 e) with a rounded product, so its error grows with |l| (3e-6 at
    20). At small noise, S and c * l_{x_0} cancel, and such an error would show.
    """
    # Local constants, because Triton compares the globals of a kernel before every launch.
    LOG_2_E: tl.constexpr = 1.4426950408889634
    if l.dtype == tl.float64:
        e = tl.exp(l)
    elif l.dtype == tl.bfloat16:
        LOG2_E_HIGH: tl.constexpr = 47274 / 32768  # 16 bits: times a bf16 it is exact; rounded down
        LOG2_E_REST: tl.constexpr = 4.888495152143634e-06  # ln 2 * (log2 e - LOG2_E_HIGH)
        # 2^(x * HIGH) * (1 + x * REST), where x * HIGH is exact. The lower bound avoids 0 *
        # infinity at a score of minus infinity.
        x = tl.maximum(l.to(tl.float32), -200.0, propagate_nan=tl.PropagateNan.ALL)
        power = tl.exp2(x * LOG2_E_HIGH)
        e = power + power * (x * LOG2_E_REST)
    else:
        WHOLE: tl.constexpr = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number
        LN_2_HIGH: tl.constexpr = 0.693145751953125  # 15 bits: times a whole number below 2^9 exact
        LN_2_LOW: tl.constexpr = 1.42860682030941723e-06
        # exp(x) = 2^n * exp(rest), |rest| <= ln 2 / 2; the sum overflows where 2^n does.
        x = tl.maximum(l.to(tl.float32), -150.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 100.0, propagate_nan=tl.PropagateNan.ALL)
        n = (x * LOG_2_E + WHOLE) - WHOLE
        rest = (x - n * LN_2_HIGH) - n * LN_2_LOW
        e = tl.exp2(rest * LOG_2_E) * tl.exp2(n)
    return e


@triton.jit
def lane_sums(x, VEC: tl.constexpr, UNIT: tl.constexpr):
    """(UNIT // VEC,) sums of the elements of x that each thread holds: one register per thread, no
    exchange between threads.
    """
    x = tl.reshape(x, [x.shape[0] // UNIT, UNIT // VEC, VEC])
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def ends(head, dim, VEC: tl.constexpr):
    """(2 * EDGE,) states before the first whole vector (first half) and after the last one (second
    half), and whether each of them exists.
    """
    i = tl.arange(0, 2 * EDGE)
    last = dim - (dim - head) % VEC
    y = tl.where(i < EDGE, i, last + i - EDGE)
    return y, tl.where(i < EDGE, i < head, y < dim)


class Row(NamedTuple):
    """A row of scores as the passes over it see it.

    Attributes:
        scores, grad: pointers to its first score and to the gradient of that score.
        stride: between two scores; those of the gradient are neighbours.
        dim: number of states.
        x_t, x_0: states of the tokens, int32.
    """

    scores: Any
    grad: Any
    stride: Any
    dim: Any
    x_t: Any
    x_0: Any


@triton.jit
def _load_summands(
    row, at, inside, terms, SUMMANDS: tl.constexpr, WITH_GRAD: tl.constexpr
):  # fmt: skip
    """The two summands of the states ``at``, 0 at x_t and where not ``inside``; stores the
    gradient.

    ``inside``: None where all states are in the row and neither x_t nor x_0 is among them.
    """
    scores = tl.load(row.scores + at, mask=inside, other=None if inside is None else 0.0)
    HAS_TOKENS: tl.constexpr = inside is not None
    one, other, g = SUMMANDS(scores, at == row.x_t, at == row.x_0, terms, HAS_TOKENS, WITH_GRAD)
    if HAS_TOKENS:
        one, other = tl.where(inside, one, 0.0), tl.where(inside, other, 0.0)
    if WITH_GRAD:
        g = g.to(tl.float32).to(row.grad.dtype.element_ty)
        tl.store(row.grad + at, g, mask=inside)
    return one, other


@triton.jit
def row_pass(row, terms, SUMMANDS: tl.constexpr, OPTIONS: tl.constexpr, BLOCK: tl.constexpr):
    """One pass over a contiguous row: two sums over y != x_t, float64; stores the gradient.

    Args:
        row: a ``Row``.
        terms: a tuple of scalars for SUMMANDS; the dtype of the first is that of the arithmetic.
        SUMMANDS: (scores, y == x_t, y == x_0, terms, HAS_TOKENS, WITH_GRAD) -> the two summands and
            the gradient of each state; if not HAS_TOKENS, neither x_t nor x_0 is among the states.
        OPTIONS: the kernel's, with with_grad, with_second (whether the second sum is needed) and
            ``score_alignment``.
        BLOCK: a ``settings.Block``.
    """
    WITH_GRAD: tl.constexpr = OPTIONS.with_grad
    WITH_SECOND: tl.constexpr = OPTIONS.with_second
    VEC: tl.constexpr = BLOCK.vec
    UNIT: tl.constexpr = BLOCK.unit
    STATES: tl.constexpr = BLOCK.states
    # The gradient decides the alignment if there is one: a narrow load leaves the rest of its cache
    # line in cache for the next one, but narrow stores are written one by one.
    if WITH_GRAD:
        head = first_aligned(row.grad, row.dim, VEC)
    else:
        head = first_aligned(row.scores, row.dim, VEC)
    y, inside = ends(head, row.dim, VEC)
    few, few_others = _load_summands(row, y, inside, terms, SUMMANDS, WITH_GRAD)
    total, second = tl.sum(few, 0).to(tl.float64), tl.sum(few_others, 0).to(tl.float64)
    # From here every block begins at a multiple of 16 bytes, which the compiler cannot infer.
    SIZE: tl.constexpr = row.scores.dtype.element_ty.primitive_bitwidth // 8
    scores = tl.multiple_of(row.scores + head, OPTIONS.score_alignment * SIZE)
    grad = row.grad
    if WITH_GRAD:
        grad = tl.multiple_of(grad + head, 16)
    dim, x_t, x_0 = row.dim - head, row.x_t - head, row.x_0 - head
    i = tl.arange(0, STATES)
    sums = tl.zeros([UNIT // VEC], terms[0].dtype)
    others = tl.zeros([UNIT // VEC], terms[0].dtype)
    whole = dim // STATES * STATES
    # Whole blocks that contain neither x_t nor x_0: their states need not be compared with these.
    for begin in range(0, whole, STATES):
        away = (x_t < begin) | (x_t >= begin + STATES)
        if WITH_GRAD:
            away = away & ((x_0 < begin) | (x_0 >= begin + STATES))
        if away:
            part = Row(scores + begin, grad + begin, row.stride, dim, x_t, x_0)  # no token in it
            one, other = _load_summands(part, i, None, terms, SUMMANDS, WITH_GRAD)
            sums += lane_sums(one, VEC, UNIT)
            if WITH_SECOND:
                others += lane_sums(other, VEC, UNIT)
    # The states after the whole blocks, the block of x_t, and that of x_0; one vector per thread.
    own, clean = x_t // STATES * STATES, x_0 // STATES * STATES
    j = tl.arange(0, UNIT)
    for turn in range(0, 3 if WITH_GRAD else 2):
        begin = tl.where(turn == 0, whole, tl.where(turn == 1, own, clean))
        token = tl.where(turn == 1, x_t, x_0)
        left = (turn == 0) | ((token >= 0) & (token < whole))
        left = left & ((turn < 2) | (clean != own) | (x_t < 0))
        end = tl.where(turn == 0, dim // VEC * VEC, tl.where(left, begin + STATES, begin))
        for first in range(begin, end, UNIT):
            # The mask is the same for all states of a vector, so the load is one vector.
            unit, unit_grad = scores + first, grad + first
            here = j // VEC < (end - first) // VEC
            part = Row(unit, unit_grad, row.stride, dim - first, x_t - first, x_0 - first)
            one, other = _load_summands(part, j, here, terms, SUMMANDS, WITH_GRAD)
            sums += lane_sums(one, VEC, UNIT)
            if WITH_SECOND:
                others += lane_sums(other, VEC, UNIT)
    total += tl.sum(sums.to(tl.float64), 0)
    if WITH_SECOND:
        second += tl.sum(others.to(tl.float64), 0)
    return total, second


@triton.jit
def strided_pass(row, terms, SUMMANDS: tl.constexpr, WITH_GRAD: tl.constexpr, BLOCK: tl.constexpr):
    """``row_pass`` where states are ``stride`` apart, or in float64: without vector loads, BLOCK
    states at a time.
    """
    i = tl.arange(0, BLOCK)
    sums, others = tl.zeros([BLOCK], terms[0].dtype), tl.zeros([BLOCK], terms[0].dtype)
    for begin in range(0, row.dim, BLOCK):
        y = begin + i
        inside = y < row.dim
        scores = tl.load(row.scores + y.to(tl.int64) * row.stride, mask=inside, other=0.0)
        one, other, g = SUMMANDS(scores, y == row.x_t, y == row.x_0, terms, True, WITH_GRAD)
        if WITH_GRAD:
            g = g.to(tl.float32).to(row.grad.dtype.element_ty)
            tl.store(row.grad + y, g, mask=inside)
        sums += tl.where(inside, one, 0.0)
        others += tl.where(inside, other, 0.0)
    return tl.sum(sums.to(tl.float64), 0), tl.sum(others.to(tl.float64), 0)


@triton.jit
def fill_zero(grad_row, dim, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """Fill the gradient row of a position that is not touched with zeros."""
    head = first_aligned(grad_row, dim, VEC)
    zeros = tl.zeros([BLOCK], grad_row.dtype.element_ty)
    i = tl.arange(0, EDGE)
    tl.store(grad_row + i, tl.zeros([EDGE], grad_row.dtype.element_ty), mask=i < head)
    body = tl.multiple_of(grad_row + head, 16)
    i = tl.arange(0, BLOCK)
    whole = (dim - head) // BLOCK * BLOCK
    for begin in range(0, whole, BLOCK):
        tl.store(body + begin + i, zeros)
    tl.store(body + whole + i, zeros, mask=i < dim - head - whole)


@triton.jit
def row_max(row, stride, dim, x_t, BLOCK: tl.constexpr):
    """Largest score, ignoring x_t and NaN.

    Few rows need it: those that overflow or underflow in float32, and those that move with a
    temperature or top-p.
    """
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    for begin in range(0, dim, BLOCK):
        y = begin + tl.arange(0, BLOCK)
        inside = (y < dim) & (y != x_t)
        l = tl.load(row + y.to(tl.int64) * stride, mask=inside, other=-float("inf"))
        best = tl.maximum(best, l.to(tl.float32))
    return tl.max(best, 0)
