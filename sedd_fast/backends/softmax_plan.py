"""How a CPU cuts the rows and states of a cross entropy with gradients, by bytes and operations.

A row's gradient needs the sum over all its states first, so its scores are read twice. Between the
two passes, what was formed of the last states is kept, as far as the workspace reaches; the scores
of the other states are formed again, a fourth product of those. With fewer rows at a time more
states are kept, but every chunk of rows packs the weight for its products again, and adds to its
gradient.

    rows at a time   kept states   products
    few              all           three, and the weight's gradient is read and written each time
    all              none          four

The plan is the cut of least time. ``benchmarks/studies/softmax_cuts.py`` measures the cuts, and a
test compares the plan with what was measured.
"""

import functools
from typing import NamedTuple

#: Operations a second of the three products, of 512 rows, and of a block's scores formed again,
#: with its exponentials. Two cores of an EPYC 7003 (Zen 3) with AVX2, float32.
FLOPS, FLOPS_AGAIN = 88e9, 65e9
#: Seconds that a further chunk of rows takes for each number of the weight: a product packs its
#: operands once more, and the gradient is read and written.
SECONDS_A_CHUNK = 5e-9


class Head(NamedTuple):
    """A head, and the workspace for it.

    Attributes:
        rows, states, width: of the products, (R, H) by (V, H).
        block: states of a block.
        workspace: bytes.
        item: bytes of an operand of a product, and of what is kept of a score.
        accumulator: bytes of a number of a float32 sum of weight gradients, where several chunks of
            rows add up in one and it is not the result; else 0.
    """

    rows: int
    states: int
    width: int
    block: int
    workspace: int
    item: int
    accumulator: int

    @property
    def blocks(self) -> int:
        """Blocks of states."""
        return -(-self.states // self.block)


class Plan(NamedTuple):
    """Rows at a time, and blocks of states, the last ones, whose exponentials are kept."""

    rows: int
    kept: int


@functools.lru_cache(maxsize=256)
def plan(head: Head) -> Plan:
    """The cut of least time that the workspace holds."""
    most = max(1, head.rows)
    counts = {max(1, -(-most // parts)) for parts in (*range(1, 33), 48, 64, 96, 128, 192, 256)}
    found = [cut for count in sorted(counts) if (cut := widest(head, count)) is not None]
    return min(found, key=lambda cut: seconds(head, cut), default=Plan(fewest(head), 0))


def widest(head: Head, rows: int) -> Plan | None:
    """With so many rows at a time, and as many blocks kept as fit; None where nothing fits."""
    room = head.workspace - rows * _row_bytes(head)
    if rows < head.rows:
        room -= head.accumulator * head.states * head.width
    if room < 0:
        return None
    if room >= rows * head.item * head.states:
        return Plan(rows, head.blocks)
    return Plan(rows, room // (rows * head.item * head.block))


def _row_bytes(head: Head) -> int:
    """A row's hidden state, twice, its gradient, and its part of a block."""
    return head.width * (2 * head.item + max(4, head.item)) + head.block * head.item


def fewest(head: Head) -> int:
    """Rows at a time where nothing is kept."""
    return max(1, min(head.rows, head.workspace // _row_bytes(head)))


def seconds(head: Head, cut: Plan) -> float:
    """The time of a cut: its products, and what every chunk of rows after the first adds."""
    chunks = -(-head.rows // cut.rows)
    again = 1 - min(cut.kept * head.block, head.states) / head.states
    product = 2 * head.rows * head.states * head.width
    further = (chunks - 1) * head.states * head.width * SECONDS_A_CHUNK
    return product * (3 / FLOPS + again / FLOPS_AGAIN) + further
