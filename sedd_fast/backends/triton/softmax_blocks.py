"""Blocks of a linear head's output for its softmax on a GPU: how it is cut, and its products.

Every row's scores are needed twice, for their sum and then for their gradient or probabilities.
Where the workspace holds whole rows the scores are kept; elsewhere a second product forms them
again (``head_plan.cheaper``).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import head_plan
from sedd_fast.backends.head import Linear
from sedd_fast.backends.products import EVEN, evened
from sedd_fast.backends.softmax import CrossEntropyInputs, DenoiseInputs, head_bias

if TYPE_CHECKING:
    from sedd_fast.kernels.softmax_blocks import Block

#: States of a weight in another dtype that are converted at a time, of rows that are kept whole.
CONVERTED = 16_384


@dataclass(frozen=True)
class Cuts:
    """How the output of a head is cut.

    Attributes:
        rows: formed at a time.
        states: columns of the memory for scores.
        blocks: the states of the products.
        kept: whether the scores of all blocks are in memory at once.
    """

    rows: int
    states: int
    blocks: list[slice]
    kept: bool

    @classmethod
    def of(cls, linear: Linear, head: head_plan.Head, twice: bool, formed_reads: bool) -> "Cuts":
        """The fastest cuts that the workspace holds.

        Args:
            twice: whether scores are needed twice.
            formed_reads: whether the second time the weight is needed in any case.
        """
        from sedd_fast.kernels.settings import multiprocessors

        states, number = len(linear.weight), multiprocessors(linear.hidden.device)
        converts = linear.weight.dtype != linear.dtype
        moved = converts * (linear.weight.element_size() + linear.dtype.itemsize)
        head = head._replace(read_bytes=moved)
        if not twice:
            plan, kept = head_plan.plan(head, number), False
        else:
            whole = head._replace(whole=True, read_bytes=moved * (1 + formed_reads))
            formed = head._replace(passes=2, read_bytes=moved * 2)
            plan, kept = head_plan.cheaper(whole, formed, number)
        part, even = plan.states, states
        if kept:  # no block but the last may write beyond its own columns
            even = states - states % head_plan.TILE_COLUMNS
            part = CONVERTED if converts else max(even, 1)
        blocks = [slice(i, min(i + part, even)) for i in range(0, even, part)]
        if even < states:
            blocks.append(slice(even, states))
        return cls(plan.rows, plan.states, blocks, kept)


class Scores:
    """The scores of some rows after the others, in the same memory.

    Args:
        count: of all rows.
    """

    def __init__(
        self, linear: Linear, inputs: CrossEntropyInputs | DenoiseInputs, cuts: Cuts, count: int
    ) -> None:
        from sedd_fast.kernels import softmax_blocks

        self.kernel = softmax_blocks
        self.linear, self.cuts, self.softcap = linear, cuts, inputs.softcap
        given = linear.bias is not None or inputs.excluded
        self.bias = head_bias(linear, inputs) if given else None
        room = cuts.rows if count else 0
        self.memory = linear.hidden.new_empty(room, cuts.states, dtype=linear.dtype)

    def columns(self, at: slice, memory: Tensor) -> Tensor:
        """The columns of a block in the memory, in whole products."""
        begin = at.start if self.cuts.kept else 0
        return memory[:, begin : begin + -(-(at.stop - at.start) // EVEN) * EVEN]

    def weight(self, at: slice) -> Tensor:
        """(n', H), the weight of a block, in the dtype of the products."""
        return evened(self.linear.weight[at], self.linear.dtype)

    def form(self, hidden: Tensor, at: slice, weight: Tensor) -> None:
        """The product of a block, for hidden states (R, H)."""
        torch.mm(hidden, weight.T, out=self.columns(at, self.memory[: len(hidden)]))

    def block(self, count: int, at: slice) -> "Block":
        """The block of that many rows, as kernels take it."""
        scores = self.columns(at, self.memory[:count])[:, : at.stop - at.start]
        bias = None if self.bias is None else self.bias[at]
        return self.kernel.Block(scores, bias, at.start, self.softcap)

    def whole(self, count: int) -> Tensor | None:
        """(R, at least states), the products of those rows; None where blocks share memory."""
        return self.memory[:count] if self.cuts.kept or len(self.cuts.blocks) == 1 else None
