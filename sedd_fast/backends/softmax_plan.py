"""How a CPU cuts the rows and states of a cross entropy with gradients, by bytes and operations.

A row's gradient needs the sum over all its states first, so its scores are read twice. Between the
two passes, what was formed of the last states is kept, as far as the workspace reaches; the scores
of the other states are formed again, a fourth product of those. With fewer rows at a time more
states are kept, but every chunk of rows reads the weight again, and adds to its gradient.

    rows at a time   kept states   products
    few              all           three, and the weight's gradient is read and written each time
    all              none          four

The plan is the cut of least time. ``benchmarks/studies/softmax_cuts.py`` measures the cuts, and a
test compares the plan with what was measured.
"""

import functools
from typing import NamedTuple


class Speed(NamedTuple):
    """How fast products are.

    Attributes:
        flops: operations a second of the three products.
        flops_again: the same of scores formed again, with their exponentials.
        seconds_a_chunk: what every chunk of rows takes besides, for each number of the weight.
        seconds_an_exponential: for each score, formed once or read again.
    """

    flops: float
    flops_again: float
    seconds_a_chunk: float
    seconds_an_exponential: float


#: Two cores of an EPYC 7003 (Zen 3) with AVX2, float32. torch's products (MKL) pack the weight for
#: every chunk of rows; those of csrc/cpu/head_products.cpp read it in place.
TORCH = Speed(88e9, 65e9, 5e-9, 0.0)
OURS = Speed(118e9, 118e9, 0.65e-9, 0.5e-9)


class Head(NamedTuple):
    """A head, and the workspace for it.

    Attributes:
        rows, states, width: of the products, (R, H) by (V, H).
        block: states of a block.
        workspace: bytes.
        item: bytes of what is kept of a score.
        row_bytes: bytes that every row takes at a time, without what is kept.
        fixed_bytes: bytes that are taken in any case.
        accumulator: bytes of a float32 sum of weight gradients, where several chunks of rows add up
            in one and it is not the result; else 0.
        multiple: products are as fast as with the next multiple of so many rows.
        most: rows that are worth having at a time.
        speed: of the products.
    """

    rows: int
    states: int
    width: int
    block: int
    workspace: int
    item: int
    row_bytes: int
    fixed_bytes: int
    accumulator: int
    multiple: int
    most: int
    speed: Speed

    @property
    def blocks(self) -> int:
        """Blocks of states."""
        return -(-self.states // self.block)

    def padded(self, rows: int) -> int:
        """The next multiple."""
        return -(-rows // self.multiple) * self.multiple


class Plan(NamedTuple):
    """Rows at a time, and blocks of states, the last ones, whose exponentials are kept."""

    rows: int
    kept: int


@functools.lru_cache(maxsize=256)
def plan(head: Head) -> Plan:
    """The cut of least time that the workspace holds."""
    most = max(1, head.rows)
    parts = *range(1, 33), 48, 64, 96, 128, 192, 256
    counts = {min(most, head.padded(max(1, -(-most // number)))) for number in parts}
    counts = {count for count in counts if count <= head.most or head.accumulator}
    found = [cut for count in sorted(counts) if (cut := widest(head, count)) is not None]
    return min(found, key=lambda cut: seconds(head, cut), default=Plan(fewest(head), 0))


def widest(head: Head, rows: int) -> Plan | None:
    """With so many rows at a time, and as many blocks kept as fit; None where nothing fits."""
    padded = head.padded(rows)
    room = head.workspace - head.fixed_bytes - padded * head.row_bytes
    if rows < head.rows:
        room -= head.accumulator
    if room < 0:
        return None
    if room >= padded * head.item * head.states:
        return Plan(rows, head.blocks)
    return Plan(rows, room // (padded * head.item * head.block))


def fewest(head: Head) -> int:
    """Rows at a time where nothing is kept."""
    room = head.workspace - head.fixed_bytes
    if head.accumulator:  # rather all rows than a sum beside the result
        if head.padded(head.rows) * head.row_bytes <= room:
            return max(1, head.rows)
        room -= head.accumulator
    count = room // head.row_bytes
    count -= count % head.multiple
    return max(1, min(head.rows, head.most, max(count, head.multiple)))


def seconds(head: Head, cut: Plan) -> float:
    """The time of a cut: its products, its exponentials, and what every chunk of rows adds."""
    chunks, rest = divmod(head.rows, cut.rows)
    rows = chunks * head.padded(cut.rows) + head.padded(rest)
    again = 1 - min(cut.kept * head.block, head.states) / head.states
    product, speed = 2 * rows * head.states * head.width, head.speed
    # Half as much again where the weight is read once more.
    chunk = head.states * head.width * speed.seconds_a_chunk * (1 + again / 2)
    further = (chunks + bool(rest) - 1) * chunk
    exponentials = rows * head.states * speed.seconds_an_exponential
    return product * (3 / speed.flops + again / speed.flops_again) + further + exponentials
