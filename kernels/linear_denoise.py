"""What a denoising step asks of a row, from statistics of groups of neighbouring states.

    p_y = exp(f_y - log_sum), f as in ``softmax_blocks``

``denoise_statistics`` has read the blocks of the head's output. ``_choose``, one program a row,
combines what it stored in float64. It selects the group of the drawn token by the inverse CDF in
the natural order of states, and reads the scores of that group, or computes them again where blocks
overwrote each other.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from sedd_fast.kernels import settings
from sedd_fast.kernels.chunks import chosen_chunk, chosen_state
from sedd_fast.kernels.denoise_statistics import Statistics, group_states
from sedd_fast.kernels.linear_reverse_step import DRAW_DEPTH, group_product
from sedd_fast.kernels.softmax_blocks import block_bias, capped

INFINITY = tl.constexpr(float("inf"))
#: The most registers of a thread.
REGISTERS = 168
#: The most groups of a row that ``_choose`` holds at a time.
SEGMENT = 1024


class Results(NamedTuple):
    """What ``_choose`` writes, None where not wanted; to kernels pointers.

    Attributes:
        token, argmax: (B, L) int64.
        log_prob, max_log_prob, margin, entropy, log_sum: (B, L) float32.
        terms: (4, R) float32, for the probabilities of ``softmax_blocks.launch_gradient``.
    """

    token: Any
    log_prob: Any
    argmax: Any
    max_log_prob: Any
    margin: Any
    entropy: Any
    log_sum: Any
    terms: Any


class Head(NamedTuple):
    """The head of some rows, for ``_choose``.

    Attributes:
        hidden: (R, H), contiguous, in the dtype of the products.
        weight: (states, H) in any dtype and layout.
        bias: (states,) float32, or None.
        softcap: 0 for none.
        products: (R, at least states), the products of all states, or None where they are no longer
            in memory.
    """

    hidden: Any
    weight: Any
    bias: Any
    softcap: Any
    products: Any


class Sizes(NamedTuple):
    """The sizes of a head, and the strides of its weight and of the rows of its products."""

    rows: Any
    states: Any
    width: Any
    stride_w: Any
    stride_k: Any
    stride_p: Any


class Draw(NamedTuple):
    """(R,) int64 positions, -1 for none; (B, L, 2) float64 uniforms, of which the second draws; and
    (R,) int64 tokens that are drawn already.
    """

    index: Any
    u: Any
    given: Any


class ChooseOptions(NamedTuple):
    """What ``_choose`` is compiled for.

    Attributes:
        drawn: whether a token is drawn, or ``given``.
        tempered: it is drawn at a temperature.
        entropy, top, terms: whether these are wanted.
        with_bias, with_softcap: of the head.
        with_products: whether these are in memory.
        group: states of a group.
        segment: groups of a row at a time, a power of two.
        depth: elements of hidden states that are multiplied at a time.
    """

    drawn: bool
    given: bool
    tempered: bool
    entropy: bool
    top: bool
    terms: bool
    with_bias: bool
    with_softcap: bool
    with_products: bool
    group: int
    segment: int
    depth: int


@triton.jit
def _sum(ties, sums, j, groups):
    """(SEGMENT,) float64: the sum of all states of groups j, in units of the largest."""
    number = tl.load(ties + j, mask=j < groups, other=0.0).to(tl.float64)
    return number + tl.load(sums + j, mask=j < groups, other=0.0).to(tl.float64)


@triton.jit
def _weights(made, j, groups, best, inverse_temperature, OPTIONS: tl.constexpr):
    """(SEGMENT,) float64: the weights of groups j, whose largest f in the row is ``best``."""
    top = tl.load(made.largest + j, mask=j < groups, other=-INFINITY).to(tl.float64)
    if OPTIONS.tempered:
        w = _sum(made.ties, made.tempered, j, groups)
        w = w * tl.exp((top - best) * inverse_temperature)
    else:
        w = _sum(made.ties, made.sums, j, groups) * tl.exp(top - best)
    return w


@triton.jit
def _chosen_group(made, groups, best, u1, inverse_temperature, OPTIONS: tl.constexpr):
    """The group in which the running sum of weights exceeds u1 of their total, and the share of its
    weight before this point.
    """
    SEGMENT: tl.constexpr = OPTIONS.segment
    lane = tl.arange(0, SEGMENT)
    total = best * 0.0
    for begin in range(0, groups, SEGMENT):
        w = _weights(made, begin + lane, groups, best, inverse_temperature, OPTIONS)
        total += tl.sum(w, 0)
    target = u1 * total
    running, before, weight = best * 0.0, best * 0.0, best * 0.0
    segment = groups * 0
    for begin in range(0, groups, SEGMENT):
        w = _weights(made, begin + lane, groups, best, inverse_temperature, OPTIONS)
        more = tl.sum(w, 0)
        # The last segment that has weight and begins before the target.
        here = (more > 0.0) & (running <= target)
        segment = tl.where(here, begin, segment)
        before, weight = tl.where(here, running, before), tl.where(here, more, weight)
        running += more
    w = _weights(made, segment + lane, groups, best, inverse_temperature, OPTIONS)
    u1 = (target - before) / tl.where(weight > 0.0, weight, 1.0)
    chosen, share = chosen_chunk(w, 0.0, u1)
    return tl.maximum(segment + chosen, 0), share  # -1 where no group has weight


@triton.jit
def _scores(head, sizes, row, begin, largest, OPTIONS: tl.constexpr):
    """(GROUP,) float32: f of the states from ``begin`` on.

    Products that are formed again may be rounded otherwise than those of a block. So f is moved to
    the ``largest`` that was found in the block, and no token is likelier than the argmax.
    """
    GROUP: tl.constexpr = OPTIONS.group
    y = begin + tl.arange(0, GROUP)
    if OPTIONS.with_products:
        f = tl.load(head.products + row * sizes.stride_p + y, mask=y < sizes.states, other=0.0)
        f = f.to(tl.float32)
    else:
        hidden = head.hidden + row * sizes.width
        f = group_product(hidden, head, sizes, begin, GROUP, OPTIONS.depth)
        f = f.to(head.hidden.dtype.element_ty).to(tl.float32)
    b, inside = block_bias(head.bias, y, sizes.states, OPTIONS.with_bias)
    f = tl.where(inside, capped(f + b, head.softcap, OPTIONS.with_softcap), -INFINITY)
    return f + (largest - tl.max(f, 0))


@triton.jit
def _token(made, head, sizes, draw, groups, best, at, inverse_temperature, OPTIONS: tl.constexpr):
    """The drawn token of a row, and its f. ``at``: its row and position."""
    GROUP: tl.constexpr = OPTIONS.group
    row, position = at
    if OPTIONS.given:
        token = tl.maximum(tl.load(draw.given + row), 0)
        group = token // GROUP
        begin = group * GROUP
        f = _scores(head, sizes, row, begin, tl.load(made.largest + group), OPTIONS)
    else:
        u1 = tl.load(draw.u + 2 * position + 1)
        group, share = _chosen_group(made, groups, best, u1, inverse_temperature, OPTIONS)
        begin = group.to(tl.int64) * GROUP
        f = _scores(head, sizes, row, begin, tl.load(made.largest + group), OPTIONS)
        e = tl.exp((f - tl.max(f, 0)) * inverse_temperature)
        token = tl.minimum(begin + chosen_state(e, share), sizes.states - 1)
    return token, tl.sum(tl.where(begin + tl.arange(0, GROUP) == token, f, 0.0), 0)


@triton.jit
def _largest(made, groups, OPTIONS: tl.constexpr):
    """The largest f of a row, and the first group that has it."""
    SEGMENT: tl.constexpr = OPTIONS.segment
    best, of = tl.full((), -INFINITY, tl.float32), groups * 0
    for begin in range(0, groups, SEGMENT):
        j = begin + tl.arange(0, SEGMENT)
        top = tl.load(made.largest + j, mask=j < groups, other=-INFINITY)
        here = tl.max(top, 0)
        first = tl.min(tl.where(top == here, j, groups - 1), 0)
        of = tl.where(here > best, first, of)
        best = tl.maximum(best, here)
    return best, of


@triton.jit(do_not_specialize=["groups", "inverse_temperature"])
def _choose(made, head, sizes, draw, results, groups, inverse_temperature, OPTIONS: tl.constexpr):
    """``made``: ``Statistics``, and so on. ``groups``: of a row."""
    SEGMENT: tl.constexpr = OPTIONS.segment
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(draw.index + row)
    made = Statistics(
        made.largest + row * groups, made.ties + row * groups, made.sums + row * groups,
        made.tempered + row * groups, made.spread + row * groups, made.second + row * groups,
        made.state + row * groups,
    )  # fmt: skip
    largest, of = _largest(made, groups, OPTIONS)
    best = tl.where(largest == -INFINITY, 0.0, largest).to(tl.float64)
    total, spread = best * 0.0, best * 0.0
    second = tl.full((), -INFINITY, tl.float32)
    for begin in range(0, groups, SEGMENT):
        j = begin + tl.arange(0, SEGMENT)
        top = tl.load(made.largest + j, mask=j < groups, other=-INFINITY)
        part = _sum(made.ties, made.sums, j, groups)
        below = top.to(tl.float64) - best
        total += tl.sum(part * tl.exp(below), 0)
        if OPTIONS.entropy:
            less = (
                tl.load(made.spread + j, mask=j < groups, other=0.0).to(tl.float64) + below * part
            )
            spread += tl.sum(tl.where(part > 0.0, less * tl.exp(below), 0.0), 0)
        if OPTIONS.top:
            next_one = tl.load(made.second + j, mask=j < groups, other=-INFINITY)
            second = tl.maximum(second, tl.max(tl.where(j == of, next_one, top), 0))
    drawable = (total > 0.0) & (total < INFINITY)
    nan = tl.where(drawable, 0.0, float("nan"))
    log_total = tl.log(tl.where(drawable, total, 1.0))
    log_sum = best + log_total + nan
    here = position >= 0
    tl.store(results.log_sum + position, log_sum.to(tl.float32), mask=here)
    if OPTIONS.entropy:
        # -sum of p * (f - log_sum)
        entropy = log_total - spread / tl.where(drawable, total, 1.0) + nan
        tl.store(results.entropy + position, entropy.to(tl.float32), mask=here)
    if OPTIONS.top:
        state = of.to(tl.int64) * OPTIONS.group + tl.load(made.state + of)
        margin = (1.0 - tl.exp(second.to(tl.float64) - best)) / tl.where(drawable, total, 1.0) + nan
        tl.store(results.argmax + position, tl.where(drawable, state, -1), mask=here)
        tl.store(results.max_log_prob + position, (nan - log_total).to(tl.float32), mask=here)
        tl.store(results.margin + position, margin.to(tl.float32), mask=here)
    if OPTIONS.terms:
        rest = tl.where(drawable, log_sum - log_sum.to(tl.float32).to(tl.float64), 0.0)
        tl.store(results.terms + row, log_sum.to(tl.float32))
        tl.store(results.terms + sizes.rows + row, 1.0)
        tl.store(results.terms + 3 * sizes.rows + row, rest.to(tl.float32))
    if OPTIONS.drawn:  # noqa: SIM102  (the other condition is known at run time only)
        if here:
            at = row, position
            token, f = _token(
                made, head, sizes, draw, groups, best, at, inverse_temperature, OPTIONS
            )
            tl.store(results.token + position, tl.where(drawable, token, -1))
            log_prob = f.to(tl.float64) - log_sum
            tl.store(results.log_prob + position, log_prob.to(tl.float32))


def launch_choose(
    made: Statistics, head: Head, draw: Draw, results: Results, inverse_temperature: float
) -> None:
    """Write the results of rows from the statistics of all their groups.

    Args:
        draw: u is None where no token is drawn, or where it is given.
        inverse_temperature: of the draw.
    """
    rows, groups = made.sums.shape
    if rows == 0:
        return
    none = draw.index  # a pointer that is never read
    given = draw.given is not None
    # Without a limit ptxas spills a little, to fit one more program onto a multiprocessor.
    limited = {} if torch.version.hip else {"maxnreg": REGISTERS}
    products = head.products
    apart = 0 if products is None else products.stride(0)
    sizes = Sizes(rows, *head.weight.shape, *head.weight.stride(), apart)
    _choose[(rows,)](
        made.pointers(), Head(*(none if x is None else x for x in head)), sizes,
        Draw(*(none if x is None else x for x in draw)),
        Results(*(none if x is None else x for x in results)), groups, inverse_temperature,
        OPTIONS=ChooseOptions(
            given or draw.u is not None, given, made.tempered is not None,
            made.spread is not None, made.second is not None, results.terms is not None,
            head.bias is not None, head.softcap > 0, products is not None,
            group_states(head.hidden.dtype), min(SEGMENT, triton.next_power_of_2(groups)),
            DRAW_DEPTH,
        ),
        num_warps=4, **settings.COMMON, **limited,
    )  # fmt: skip
