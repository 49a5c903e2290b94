"""Statistics of groups of neighbouring states of a linear head's output, for a denoising step.

``_statistics`` reads a block of the output and stores, for every row and group, the largest f, how
many states have it, and the sum of exp(f - largest) over the others, so that a probability of 1e-12
is not lost beside one of 1; and what else is wanted: that sum at a temperature, the sum of
(f - largest) * exp(f - largest), the state of the largest f, and the second largest f. No sum
overflows or underflows. ``linear_denoise`` combines them.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels import linear_reverse_step
from sedd_fast.kernels.softmax_blocks import Block, block_bias, capped, power, tile_of

INFINITY = tl.constexpr(float("inf"))
#: The most registers of a thread, of which 96 spill.
REGISTERS = 128


class Statistics(NamedTuple):
    """(R, groups) each, float32 and for ``state`` int32; None where not wanted.

    As kernels see it: pointers.

    Attributes:
        largest: f of a group.
        ties: how many states have it.
        sums: of exp(f - largest) over the other states.
        tempered: of exp((f - largest) / temperature) over them.
        spread: sums of (f - largest) * exp(f - largest).
        second: the second largest f, which may be equal.
        state: the lowest state of the largest f, less the first of its group.
    """

    largest: Any
    ties: Any
    sums: Any
    tempered: Any
    spread: Any
    second: Any
    state: Any

    @classmethod
    def like(
        cls, hidden: Tensor, groups: int, tempered: bool, entropy: bool, top: bool
    ) -> "Statistics":
        """Memory for rows of hidden states (R, H)."""
        shape, wanted = (len(hidden), groups), (True, True, True, tempered, entropy, top)
        made = (hidden.new_empty(shape, dtype=torch.float32) if want else None for want in wanted)
        return cls(*made, hidden.new_empty(shape, dtype=torch.int32) if top else None)

    def pointers(self) -> "Statistics":
        """With a pointer that is never read in place of None."""
        return Statistics(*(self.sums if x is None else x for x in self))


class StatisticsOptions(NamedTuple):
    """What ``_statistics`` is compiled for: which statistics are wanted, that there is a bias and a
    softcap, that scores have 16 bits, and the sizes of a group and of the ``BlockTile``.
    """

    tempered: bool
    entropy: bool
    top: bool
    with_bias: bool
    with_softcap: bool
    half: bool
    group: int
    tile_group: int
    tile_rows: int
    tile_states: int


@triton.jit(
    do_not_specialize=["rows", "states", "first", "groups", "softcap", "inverse_temperature"]
)
def _statistics(
    scores, bias, made, rows, states, stride, first, groups, softcap, inverse_temperature,
    OPTIONS: tl.constexpr,
):  # fmt: skip
    """``made``: ``Statistics``. ``groups``: of a whole row."""
    HALF: tl.constexpr = OPTIONS.half
    WIDTH: tl.constexpr = OPTIONS.group
    ROWS: tl.constexpr = OPTIONS.tile_rows
    TILE: tl.constexpr = OPTIONS.tile_states
    PIECES: tl.constexpr = TILE // WIDTH
    across = tl.cdiv(states, TILE)
    tile, down = tl.program_id(0) % across, tl.program_id(0) // across * OPTIONS.tile_group
    i = down + tl.arange(0, ROWS)
    n = tl.arange(0, TILE)
    b, inside = block_bias(bias, tile * TILE + n, states, OPTIONS.with_bias)
    begin = down.to(tl.int64) * stride + tile * TILE
    at = tl.arange(0, ROWS)[:, None] * stride + n[None, :]
    j = (first + tile * TILE) // WIDTH + tl.arange(0, PIECES)
    y = tl.arange(0, WIDTH)[None, None, :]
    for _ in range(0, tl.minimum(OPTIONS.tile_group, rows - down), ROWS):
        live = i < rows
        f = tl.load(scores + begin + at, mask=live[:, None], other=0.0).to(tl.float32)
        f = capped(f + b[None, :], softcap, OPTIONS.with_softcap)
        f = tl.reshape(tl.where(inside[None, :], f, -INFINITY), [ROWS, PIECES, WIDTH])
        top = tl.max(f, 2)
        from_top = f - tl.where(top == -INFINITY, 0.0, top)[:, :, None]
        e = power(from_top, HALF)
        to = i.to(tl.int64)[:, None] * groups + j[None, :]
        here = live[:, None] & (j < groups)[None, :]
        is_top = f == top[:, :, None]
        ties = tl.sum(tl.where(is_top, 1.0, 0.0), 2)
        tl.store(made.largest + to, top, mask=here)
        tl.store(made.ties + to, tl.where(top == -INFINITY, 0.0, ties), mask=here)
        tl.store(made.sums + to, tl.sum(tl.where(is_top, 0.0, e), 2), mask=here)
        if OPTIONS.tempered:
            tempered = tl.where(is_top, 0.0, power(from_top * inverse_temperature, HALF))
            tl.store(made.tempered + to, tl.sum(tempered, 2), mask=here)
        if OPTIONS.entropy:
            spread = tl.sum(tl.where(e > 0.0, from_top * e, 0.0), 2)
            tl.store(made.spread + to, spread, mask=here)
        if OPTIONS.top:
            state = tl.min(tl.where(is_top, y, WIDTH - 1), 2)
            second = tl.max(tl.where(y == state[:, :, None], -INFINITY, f), 2)
            tl.store(made.state + to, state, mask=here)
            tl.store(made.second + to, second, mask=here)
        i += ROWS
        begin += ROWS * stride.to(tl.int64)


def group_states(dtype: torch.dtype) -> int:
    """States of a group for operands of that dtype."""
    return min(linear_reverse_step.GROUP, tile_of(dtype).states)


def launch_statistics(block: Block, made: Statistics, inverse_temperature: float) -> None:
    """Compute the statistics of the groups of a block."""
    scores, bias, _, softcap = block
    if 0 in scores.shape:
        return
    tile = tile_of(scores.dtype)
    _statistics[block.grid()](
        scores, made.sums if bias is None else bias, made.pointers(), *block.numbers(),
        made.sums.shape[1], softcap, inverse_temperature,
        OPTIONS=StatisticsOptions(
            made.tempered is not None, made.spread is not None, made.second is not None,
            bias is not None, softcap > 0, scores.element_size() == 2, group_states(scores.dtype),
            tile.group, tile.rows, tile.states,
        ),
        **block.launch_options(REGISTERS),
    )  # fmt: skip
