"""A reverse step from hidden states on a GPU that keeps sums of groups of states, not scores.

A draw needs the sum of its whole row. Where the weights are alpha * exp(f_y), sums of 128 states
are enough, and the group that is drawn from is formed again. Other rows are formed whole, a few at
a time: the clamped distribution of the uniform graph, a temperature or top-p, and float32 operands,
whose products Triton forms without tensor cores.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.triton.launch import launched, unsupported
from sedd_fast.backends.triton.reverse_step import reverse_step

if TYPE_CHECKING:
    from sedd_fast.kernels.linear_reverse_step import GroupSums

#: Dtypes of operands whose products Triton forms as fast as cuBLAS, or nearly so.
GROUPED = (torch.bfloat16, torch.float16)
#: States of a weight of another dtype that are converted at a time: enough tiles for a GPU.
STATES = 8192


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one product of the rows that may move, and a group of states where one does.

    Raises:
        RuntimeError: rows must be formed whole, and have more states than the kernel of a row can
            hold.
    """
    whole_rows = reverse.changes_shares or reverse.is_clamped
    if linear.dtype in GROUPED and not whole_rows:
        return launched("linear_reverse_step", linear.hidden, _Step(linear, reverse.contiguous()))
    if reason := unsupported("reverse_step", linear.weight.t()):
        raise RuntimeError(
            f"linear_reverse_step cannot run on the 'triton' backend: {reason}; "
            'use_backend("reference") has no such limit'
        )
    return row_blocks.linear_reverse_step(linear, reverse, reverse_step)


class _Step:
    """One step of all touched rows, as many at a time as the workspace has room for."""

    def __init__(self, linear: Linear, reverse: ReverseInputs) -> None:
        from sedd_fast.kernels import linear_reverse_step as kernel
        from sedd_fast.kernels import tiles

        self.kernel, self.operands = kernel, tiles.Operands
        self.linear, self.reverse = linear, reverse
        self.weight = linear.weight[: reverse.read_states]
        self.bias = linear.bias_fp32()[: len(self.weight)]
        self.groups = -(-len(self.weight) // kernel.group_states(linear.dtype))
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
        leave_out = len(self.weight) == self.reverse.dim  # x_t is among the states
        for first in range(0, len(self.weight), self.states):
            at = slice(first, first + self.states)
            part = self.weight[at].to(hidden.dtype)
            block = self.operands(hidden, part, self.bias[at], live)
            self.kernel.launch_sums(block, x_t, made, first, leave_out)
        return made
