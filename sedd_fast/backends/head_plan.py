"""How much of a linear head a GPU forms at a time: rows, and states in a block of the vocabulary.

A matrix product is computed in tiles of 128 x 256, one for each multiprocessor at a time. Where the
number of tiles is just above a multiple of the multiprocessors, most of the last wave idles: 5,632
states of width 768 make exactly 132 tiles of the weight's gradient, a wave of an H100, and 5,888
states make 138, two waves. So the sizes are chosen by counting waves, among those that the
workspace holds.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

#: Rows and columns of the tile that cuBLAS multiplies at a time.
TILE_ROWS, TILE_COLUMNS = 128, 256
#: Fewest states in a block: few large launches are better.
FEWEST = 1024
#: Time is counted in depths: a wave of tiles takes as long as the product is deep. What a block of
#: states costs besides its products, and the bytes that are moved in the time of one depth (3 TB/s
#: beside 800 TFLOP/s).
LAUNCHES, BYTES = 1024, 32 << 10


class Head(NamedTuple):
    """A head and the workspace for it.

    Attributes:
        rows, states, width: of the products, (R, H) by (V, H).
        workspace: bytes.
        row_bytes, score_bytes: what a row, and a score of a block, take of them.
    """

    rows: int
    states: int
    width: int
    workspace: int
    row_bytes: float
    score_bytes: float


class Plan(NamedTuple):
    """Rows and states at a time; the states are a multiple of 256, or more than there are."""

    rows: int
    states: int


def plan(head: Head, multiprocessors: int) -> Plan:
    """The sizes of least time that the workspace holds; at least some rows of FEWEST states.

    All rows at a time where that is possible, else a multiple of 128.
    """
    rounded = head._replace(rows=_ceil(head.rows, TILE_ROWS) * TILE_ROWS)
    found = _plan(rounded, multiprocessors)
    return found if found.rows < head.rows else Plan(max(1, head.rows), found.states)


@functools.lru_cache(maxsize=1024)
def _plan(head: Head, multiprocessors: int) -> Plan:
    best = min(_candidates(head), key=lambda plan: depth(head, plan, multiprocessors), default=None)
    if best is not None:
        return best
    states = _fewest(head)
    return Plan(max(1, int(head.workspace / (head.row_bytes + states * head.score_bytes))), states)


def _candidates(head: Head) -> Iterator[Plan]:
    """Rows in ever more parts, each with the widest blocks that fit and those down to half."""
    at_least = TILE_ROWS * (head.row_bytes + _fewest(head) * head.score_bytes)
    if head.workspace < at_least:
        return
    most = head.workspace / (head.row_bytes + _fewest(head) * head.score_bytes)
    fewest = max(1, _ceil(head.rows, int(most) // TILE_ROWS * TILE_ROWS))
    for parts in range(fewest, 4 * fewest + 1, max(1, fewest // 8)):
        rows = _ceil(_ceil(head.rows, parts), TILE_ROWS) * TILE_ROWS
        room = (head.workspace / max(rows, 1) - head.row_bytes) / head.score_bytes
        widest = min(int(room) // TILE_COLUMNS, _ceil(head.states, TILE_COLUMNS))
        for tiles in range(widest, max(widest // 2, _fewest(head) // TILE_COLUMNS - 1), -1):
            yield Plan(rows, tiles * TILE_COLUMNS)
        if rows <= TILE_ROWS:
            return


def _fewest(head: Head) -> int:
    return min(FEWEST, _ceil(head.states, TILE_COLUMNS) * TILE_COLUMNS)


def depth(head: Head, plan: Plan, multiprocessors: int) -> float:
    """The time of all products and of what comes with them, in depths."""
    parts = _ceil(head.rows, plan.rows)
    again = 8 * head.states * head.width / BYTES  # a part adds to the weight's gradient of the last
    blocks, rest = divmod(head.states, plan.states)
    each = blocks * _block(plan.rows, plan.states, head.width, multiprocessors)
    if rest:
        each += _block(plan.rows, rest, head.width, multiprocessors)
    return parts * each + (parts - 1) * again


def _block(rows: int, states: int, width: int, multiprocessors: int) -> float:
    """The scores, the gradients of the hidden states and of the weight, and the rest of a block."""
    down, across = _ceil(rows, TILE_ROWS), _ceil(width, TILE_COLUMNS)
    scores = _ceil(down * _ceil(states, TILE_COLUMNS), multiprocessors) * width
    hidden = _ceil(down * across, multiprocessors) * states
    weight = _ceil(_ceil(states, TILE_ROWS) * across, multiprocessors) * rows
    return scores + hidden + weight + LAUNCHES + 8 * rows * width / BYTES


def _ceil(a: int, b: int) -> int:
    return -(-a // max(b, 1))
