"""How much of a linear head a GPU forms at a time: rows, and states in a block of the vocabulary.

A matrix product is computed in tiles of 128 x 256, one for each multiprocessor at a time. Where the
number of tiles is just above a multiple of the multiprocessors, most of the last wave idles: 5,632
states of width 768 make exactly 132 tiles of the weight's gradient, a wave of an H100, and 5,888
states make 138, two waves. So the sizes are chosen by counting waves, among those that the
workspace holds.

A cross entropy needs the sum of a row's exponentials before its gradient. Either the workspace
keeps whole rows of scores until then, which cuts the rows into parts, or the scores are formed
again, a product more. ``cheaper`` compares the two.
"""

import functools
import math
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
        passes: how often all scores are formed.
        hidden, weight: whether their gradients are products too.
        whole: rows are whole, not cut between states.
        sum_bytes: what sums of the weight's gradient take of the workspace where rows are cut.
        read_bytes: bytes moved for an element of the weight each time that a part of the rows has
            been through all states.
    """

    rows: int
    states: int
    width: int
    workspace: int
    row_bytes: float
    score_bytes: float
    passes: int = 1
    hidden: bool = True
    weight: bool = True
    whole: bool = False
    sum_bytes: int = 0
    read_bytes: int = 0


class Plan(NamedTuple):
    """Rows and states at a time; the states are a multiple of 256, or more than there are."""

    rows: int
    states: int


def plan(head: Head, multiprocessors: int) -> Plan:
    """The sizes of least time that the workspace holds; at least some rows of FEWEST states.

    All rows at a time where that is possible, else a multiple of 128.
    """
    states = _fewest(head)
    fits = int(head.workspace / (head.row_bytes + states * head.score_bytes))
    return _exact(head, _best(_rounded(head), multiprocessors) or Plan(max(1, fits), states))


def cheaper(kept: Head, formed: Head, multiprocessors: int) -> tuple[Plan, bool]:
    """The sizes for a head whose scores are needed twice, and whether they are kept.

    Args:
        kept: with whole rows, each formed once.
        formed: the same with scores that are formed again.
    """
    whole, again = _best(_rounded(kept), multiprocessors), plan(formed, multiprocessors)
    if whole is not None:
        whole = _exact(kept, whole)
        if depth(kept, whole, multiprocessors) <= depth(formed, again, multiprocessors):
            return whole, True
    return again, False


def _rounded(head: Head) -> Head:
    return head._replace(rows=_ceil(head.rows, TILE_ROWS) * TILE_ROWS)


def _exact(head: Head, found: Plan) -> Plan:
    """The same with no more rows than there are."""
    return found if found.rows < head.rows else Plan(max(1, head.rows), found.states)


@functools.lru_cache(maxsize=1024)
def _best(head: Head, multiprocessors: int) -> Plan | None:
    return min(_candidates(head), key=lambda plan: depth(head, plan, multiprocessors), default=None)


def _candidates(head: Head) -> Iterator[Plan]:
    """Rows in ever more parts, each with the widest blocks that fit and those down to half."""
    each = head.row_bytes + _fewest(head) * head.score_bytes
    room = _room(head, several=head.rows * each > head.workspace)
    if room < TILE_ROWS * each:
        return
    fewest = max(1, _ceil(head.rows, int(room / each) // TILE_ROWS * TILE_ROWS))
    for parts in range(fewest, 4 * fewest + 1, max(1, fewest // 8)):
        rows = _ceil(_ceil(head.rows, parts), TILE_ROWS) * TILE_ROWS
        room = _room(head, several=rows < head.rows) / max(rows, 1)
        widest = int((room - head.row_bytes) / head.score_bytes) // TILE_COLUMNS
        widest = min(widest, _ceil(head.states, TILE_COLUMNS))
        for tiles in range(widest, max(widest // 2, _fewest(head) // TILE_COLUMNS - 1), -1):
            yield Plan(rows, tiles * TILE_COLUMNS)
        if rows <= TILE_ROWS:
            return


def _room(head: Head, several: bool) -> float:
    """Bytes for rows and scores. Where rows are cut, sums of the weight's gradient take their part;
    blocks leave them at most half, because rows may have to be cut.
    """
    if not several:
        return head.workspace
    rest = head.workspace - head.sum_bytes
    return rest if head.whole else max(rest, head.workspace / 2)


def _fewest(head: Head) -> int:
    whole = _ceil(head.states, TILE_COLUMNS) * TILE_COLUMNS
    return whole if head.whole else min(FEWEST, whole)


def depth(head: Head, plan: Plan, multiprocessors: int) -> float:
    """The time of all products and of what comes with them, in depths."""
    parts, elements = _ceil(head.rows, plan.rows), head.states * head.width
    again = 8 * elements * head.weight  # a part adds to the weight's gradient of the last
    moved = float(parts * elements * head.read_bytes + (parts - 1) * again)
    if parts > 1:
        moved += 1.5 * head.sum_bytes  # sums in float32 become a gradient of 16 bits
    blocks, rest = divmod(head.states, plan.states)
    each = blocks * _block(head, plan, multiprocessors)
    if rest:
        each += _block(head, Plan(plan.rows, rest), multiprocessors)
    return parts * each + moved / BYTES


def _block(head: Head, block: Plan, multiprocessors: int) -> float:
    """The scores, the gradients of the hidden states and of the weight, and the rest of a block."""
    (rows, states), width = block, head.width
    down, across = _ceil(rows, TILE_ROWS), _ceil(width, TILE_COLUMNS)
    scores = _ceil(down * _ceil(states, TILE_COLUMNS), multiprocessors) * width
    total = float(head.passes * (scores + LAUNCHES))
    if head.hidden:
        waves = down * across / multiprocessors
        # cuBLAS splits a product as deep as the vocabulary, where its tiles are few.
        waves = waves if head.whole else math.ceil(waves)
        total += waves * states + 8 * rows * width / BYTES
    if head.weight:
        total += _ceil(_ceil(states, TILE_ROWS) * across, multiprocessors) * rows
    return total


def _ceil(a: int, b: int) -> int:
    return -(-a // max(b, 1))
