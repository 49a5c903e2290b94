"""A reverse step from hidden states that never stores the head's output.

    weight of y != x_t: alpha * exp(f_y);  weight of x_t: max(0, gamma)

The first kernel forms tiles of the output f. For every group of neighbouring states it stores the
largest score and the sum of exp(f - largest), which cannot overflow or underflow. The second
kernel, one program per row, adds these sums, decides whether the token moves, selects a group by
the inverse CDF, and computes the scores of that group again. If the token stays, nothing is
computed twice.

A clamped distribution (uniform graph, analytic or denoise), max(0, alpha * exp(f) + beta) with a
beta that depends on the sum over the row, cannot be computed from such sums.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import settings
from sedd_fast.kernels.chunks import chosen_chunk, chosen_state
from sedd_fast.kernels.coefficients import (
    Noise,
    log_output_scale,
    reverse_coefficients,
    row_shift,
)
from sedd_fast.kernels.reverse_step import METHODS, may_move
from sedd_fast.kernels.tiles import NO_SCORE, Operands, halves, origin, scores, tile

#: States of a group: few, because the head's weights of the selected group are read again.
GROUP = 128
DRAW_DEPTH = 64


@triton.jit(do_not_specialize=["first"])
def _group_sums(operands, x_t, groups, sizes, first, OPTIONS: tl.constexpr):
    """``groups``: ``GroupSums``."""
    rows, states = sizes.rows, sizes.states
    ROWS: tl.constexpr = OPTIONS.rows
    STATES: tl.constexpr = OPTIONS.states
    HALVINGS: tl.constexpr = OPTIONS.halvings
    f = scores(operands, sizes, OPTIONS)
    from_row, from_state = origin(rows, ROWS, STATES)
    i = from_row + tl.arange(0, ROWS)
    WIDTH: tl.constexpr = STATES >> HALVINGS
    if OPTIONS.with_x_t:
        current = tl.load(x_t + i, mask=i < rows, other=-1).to(tl.int32) - first - from_state
    pieces = halves(f, HALVINGS)
    for n in tl.static_range(len(pieces)):
        piece = pieces[n]
        if OPTIONS.with_x_t:
            y = n * WIDTH + tl.arange(0, WIDTH)
            piece = tl.where(y[None, :] == current[:, None], NO_SCORE, piece)
        top = tl.maximum(tl.max(piece, 1), NO_SCORE)
        total = tl.sum(tl.exp(piece - top[:, None]), 1)
        # Where no state has a weight, those that do not exist have none either. A NaN stays.
        total = tl.where(top <= 0.5 * NO_SCORE, 0.0 * total, total)
        at = (((first + from_state) // WIDTH + n) * rows + i).to(tl.int64)
        if from_state + n * WIDTH < states:
            tl.store(groups.largest + at, top, mask=i < rows)
            tl.store(groups.sums + at, total, mask=i < rows)


@triton.jit
def group_product(row, pointers, sizes, begin, GROUP: tl.constexpr, DEPTH: tl.constexpr):
    """(GROUP,) float32: the product of the states from ``begin`` on, without bias, formed again.

    ``pointers`` has the weight; states beyond the last one are copies of it.
    """
    states, width = sizes.states, sizes.width
    y = begin + tl.arange(0, GROUP)
    at = tl.minimum(y, states - 1).to(tl.int64)[:, None] * sizes.stride_w
    f = tl.zeros([GROUP], tl.float32)
    for first in range(0, width, DEPTH):
        k = first + tl.arange(0, DEPTH)
        h = tl.load(row + k, mask=k < width, other=0.0)
        weight = pointers.weight + at + k[None, :] * sizes.stride_k
        w = tl.load(weight, mask=(k < width)[None, :], other=0.0)
        f += tl.sum(w.to(h.dtype).to(tl.float32) * h.to(tl.float32)[None, :], 1)
    return f


class DrawPointers(NamedTuple):
    """What ``_draw`` reads (the operands, positions of rows, the inputs of the step, and sums of
    groups), and x_s, which it writes.
    """

    hidden: Any
    weight: Any
    bias: Any
    positions: Any
    x_t: Any
    sigma: Any
    dsigma: Any
    u: Any
    largest: Any
    sums: Any
    x_s: Any


class DrawOptions(NamedTuple):
    """What ``_draw`` is compiled for.

    Attributes:
        absorbing: graph; else uniform.
        method: a value of METHODS.
        scaled: the outputs f are those of log scores f - ln E - ln V.
        group: states of a group.
        groups: size of the axis of groups, a power of two.
        depth: elements of hidden states that are multiplied at a time.
    """

    absorbing: bool
    method: int
    scaled: bool
    group: int
    groups: int
    depth: int


@triton.jit(do_not_specialize=["length", "groups", "dim", "vocab", "mask"])
def _draw(pointers, sizes, length, groups, dim, vocab, mask, OPTIONS: tl.constexpr):
    """``sizes``: ``tiles.Sizes``."""
    rows = sizes.rows
    ABSORBING: tl.constexpr = OPTIONS.absorbing
    GROUP: tl.constexpr = OPTIONS.group
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(pointers.positions + row)
    if position >= 0:
        current, b = tl.load(pointers.x_t + position), position // length
        noise = Noise(tl.load(pointers.sigma + b), tl.load(pointers.dsigma + b))
        u0, u1 = tl.load(pointers.u + 2 * position), tl.load(pointers.u + 2 * position + 1)
        if may_move(current, noise, (u0, u1), dim, mask, ABSORBING):
            j = tl.arange(0, OPTIONS.groups)
            top = tl.load(pointers.largest + j * rows + row, mask=j < groups, other=NO_SCORE)
            part = tl.load(pointers.sums + j * rows + row, mask=j < groups, other=0.0)
            shift = row_shift(tl.max(top, 0).to(tl.float64), ABSORBING)
            weights = part.to(tl.float64) * tl.exp(top.to(tl.float64) - shift)
            total = tl.sum(weights, 0)
            if OPTIONS.scaled:
                shift -= log_output_scale(noise.sigma, vocab)
            alpha, _, gamma = reverse_coefficients(
                noise, total, shift, vocab, ABSORBING, OPTIONS.method
            )
            moving = alpha * total
            mass = moving + tl.where(gamma > 0.0, gamma, 0.0)
            drawable = (alpha > 0.0) & (mass > 0.0) & (mass < float("inf")) & (gamma == gamma)
            if drawable & (u0 * mass < moving):
                chosen, share = chosen_chunk(weights, 0.0, u1)
                begin = chosen * GROUP
                hidden = pointers.hidden + row * sizes.stride_h
                f = group_product(hidden, pointers, sizes, begin, GROUP, OPTIONS.depth)
                y = begin + tl.arange(0, GROUP)
                f += tl.load(pointers.bias + y, mask=y < sizes.states, other=NO_SCORE)
                f = tl.where(y == current, NO_SCORE, f)
                e = tl.exp(f - tl.max(f, 0))
                drawn = tl.minimum(begin + chosen_state(e, share), sizes.states - 1)
                tl.store(pointers.x_s + position, drawn.to(tl.int64))


class GroupSums(NamedTuple):
    """(groups, R) float32: the largest score f of each group and row, and the sum of
    exp(f - largest).
    """

    largest: Tensor
    sums: Tensor


def group_states(dtype: torch.dtype) -> int:
    """States of a group for operands of that dtype: GROUP, or a tile if that is smaller."""
    return min(GROUP, tile(dtype).states)


def launch_sums(
    operands: Operands, x_t: Tensor, groups: GroupSums, first: int, with_x_t: bool
) -> None:
    """Compute the sums of the groups of a block of states.

    Args:
        x_t: (R,) int64, left out of its group if ``with_x_t``, else not read.
        first: the first state of the block, which is the first of a group.
    """
    if operands.grid() == (0,):
        return
    _group_sums[operands.grid()](
        operands, x_t, groups, operands.sizes(), first, **operands.options(with_x_t, GROUP)
    )  # fmt: skip


def launch_draw(
    operands: Operands,
    rows: Tensor,
    reverse: Any,
    groups: GroupSums,
    x_s: Tensor,
) -> None:
    """Draw the next state where a token moves.

    Args:
        operands: with the whole weight, in any dtype.
        rows: (R,) positions, -1 for none.
        reverse: x_t, sigma, dsigma and u, contiguous; graph, method and scale_by_sigma.
        x_s: (B, L) int64 output; must hold x_t, and changes where a token moves.
    """
    if len(operands.hidden) == 0:
        return
    hidden, weight, bias, _ = operands
    count = len(groups.sums)
    _draw[(len(hidden),)](
        DrawPointers(
            hidden, weight, bias, rows, reverse.x_t, reverse.sigma, reverse.dsigma, reverse.u,
            *groups, x_s,
        ),
        operands.sizes(), reverse.x_t.shape[1], count, reverse.dim, reverse.vocab_size,
        reverse.mask_index,
        OPTIONS=DrawOptions(
            reverse.graph == "absorbing", METHODS[reverse.method].value, reverse.scale_by_sigma,
            group_states(hidden.dtype), triton.next_power_of_2(count), DRAW_DEPTH,
        ),
        num_warps=4, **settings.COMMON,
    )  # fmt: skip
