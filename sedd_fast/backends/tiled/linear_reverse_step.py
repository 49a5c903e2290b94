"""A reverse step from hidden states on a GPU that keeps sums of groups of states, not scores."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import triton as blocked
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.triton.launch import launched

if TYPE_CHECKING:
    from sedd_fast.kernels.tiled_reverse_step import GroupSums

#: States of a weight of another dtype that are converted at a time: enough tiles for a GPU.
STATES = 8192


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one product of the rows that may move, and a group of states where one does.

    The clamped distribution of the uniform graph, and a temperature or top-p, need the sum of a
    row before its weights: such rows are formed whole, by the ``triton`` backend.
    """
    if reverse.changes_shares or (reverse.graph == "uniform" and reverse.method != "euler"):
        return blocked.linear_reverse_step(linear, reverse)
    return launched("linear_reverse_step", linear.hidden, _Step(linear, reverse.contiguous()))


class _Step:
    """One step of all touched rows, as many at a time as the workspace has room for."""

    def __init__(self, linear: Linear, reverse: ReverseInputs) -> None:
        from sedd_fast.kernels import tiled_reverse_step, tiles

        self.kernel, self.operands = tiled_reverse_step, tiles.Operands
        self.linear, self.reverse = linear, reverse
        self.weight = linear.weight[: reverse.vocab_size]
        self.bias = linear.bias_fp32()[: len(self.weight)]
        self.groups = -(-len(self.weight) // self.kernel.group_states(linear.dtype))
        self.states = len(self.weight)
        if linear.weight.dtype != linear.dtype:  # blocks begin where tiles do
            tile = tiles.tile(linear.dtype)
            self.states = -(-STATES // tile.states) * tile.states

    def __call__(self) -> Tensor:
        rows, x_s = self.linear.read(self.reverse), self.reverse.x_t.clone()
        # A row takes its hidden states, and two sums for every group.
        each = self.groups * 8 + self.linear.hidden.shape[-1] * self.linear.dtype.itemsize
        count = max(1, min(self.linear.workspace // each, len(rows)))
        for some in rows.split(count) if len(rows) else ():
            hidden, live = self.linear.gathered(some), (some >= 0).sum()
            groups = self._sums(some, hidden, live)
            whole = self.operands(hidden, self.weight, self.bias, live)
            self.kernel.launch_draw(whole, some.contiguous(), self.reverse, groups, x_s)
        return x_s

    def _sums(self, rows: Tensor, hidden: Tensor, live: Tensor) -> "GroupSums":
        """The sums of all groups of states."""
        memory = hidden.new_empty((2, self.groups, len(hidden)), dtype=torch.float32)
        made = self.kernel.GroupSums(*memory)
        x_t = self.reverse.x_t.flatten()[rows.clamp(min=0)]
        uniform = self.reverse.graph == "uniform"
        for first in range(0, len(self.weight), self.states):
            at = slice(first, first + self.states)
            part = self.weight[at].to(hidden.dtype)
            block = self.operands(hidden, part, self.bias[at], live)
            self.kernel.launch_sums(block, x_t, made, first, uniform)
        return made
