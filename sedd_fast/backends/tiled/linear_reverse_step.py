"""A reverse step from hidden states on a GPU that keeps sums of groups of states, not scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import triton as blocked
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.triton.launch import launching_triton

if TYPE_CHECKING:
    from sedd_fast.kernels.tiled_reverse_step import GroupSums, StepRows

#: States of a weight of another dtype that are converted at a time: enough tiles for a GPU.
STATES = 8192


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one product of the rows that may move, and a group of states where one does.

    The clamped distribution of the uniform graph, and a temperature or top-p, need the sum of a
    row before its weights: such rows are formed whole, by the ``triton`` backend.
    """
    if reverse.changes_shares or (reverse.graph == "uniform" and reverse.method != "euler"):
        return blocked.linear_reverse_step(linear, reverse)
    return _Run(linear, reverse)()


class _Run:
    """One step of all touched rows, as many at a time as the workspace has room for."""

    def __init__(self, linear: Linear, reverse: ReverseInputs) -> None:
        from sedd_fast.kernels import tiled_reverse_step as kernel
        from sedd_fast.kernels import tiles

        self.linear, self.reverse = linear, reverse
        self.weight = linear.weight[: reverse.vocab_size]
        self.bias = linear.bias_fp32()[: len(self.weight)]
        tile = tiles.tile(linear.dtype)
        self.group = kernel.group_states(linear.dtype)
        # Blocks begin where tiles do.
        self.states = len(self.weight)
        if linear.weight.dtype != linear.dtype:
            self.states = -(-STATES // tile.states) * tile.states

    def __call__(self) -> Tensor:
        from sedd_fast.kernels.tiled_reverse_step import StepRows

        reverse = self.reverse.contiguous()
        assert reverse.u is not None
        rows, x_t = self.linear.read(reverse), reverse.x_t
        x_s = x_t.clone()
        noise = reverse.sigma, reverse.dsigma
        for some in rows.split(self._count(len(rows))) if len(rows) else ():
            step = StepRows(some.contiguous(), x_t, *noise, reverse.u, x_s)
            self._draw(step, self.linear.gathered(some))
        return x_s

    def _count(self, rows: int) -> int:
        """Rows at a time: hidden states, and two sums for every group."""
        groups = -(-len(self.weight) // self.group)
        each = groups * 8 + self.linear.hidden.shape[-1] * self.linear.dtype.itemsize
        return max(1, min(self.linear.workspace // each, rows))

    def _draw(self, step: StepRows, hidden: Tensor) -> None:
        from sedd_fast.kernels import tiled_reverse_step as kernel
        from sedd_fast.kernels import tiles

        reverse = self.reverse
        live = (step.rows >= 0).sum()
        with launching_triton("linear_reverse_step", hidden):
            groups = self._groups(step, hidden, live)
            whole = tiles.Operands(hidden, self.weight, self.bias, live)
            process = reverse.graph, reverse.method, reverse.scale_by_sigma
            kernel.launch_draw(whole, step, groups, *process)

    def _groups(self, step: StepRows, hidden: Tensor, live: Tensor) -> GroupSums:
        """The sums of all groups of states."""
        from sedd_fast.kernels import tiled_reverse_step as kernel
        from sedd_fast.kernels import tiles

        shape = -(-len(self.weight) // self.group), len(hidden)
        made = kernel.GroupSums(*hidden.new_empty((2, *shape), dtype=torch.float32))
        x_t = step.x_t.flatten()[step.rows.clamp(min=0)]
        uniform = self.reverse.graph == "uniform"
        for first in range(0, len(self.weight), self.states):
            at = slice(first, first + self.states)
            part = self.weight[at].to(hidden.dtype)
            operands = tiles.Operands(hidden, part, self.bias[at], live)
            kernel.launch_sums(operands, x_t, made, first, uniform)
        return made
