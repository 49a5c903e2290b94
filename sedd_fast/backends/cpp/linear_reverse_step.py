"""A reverse step from hidden states: sums of blocks of states, then the drawn block once more.

A product of few whole rows runs below full speed, and many do not fit the workspace. So a block of
states is formed for all rows at once, a kernel adds up exp(f) of each row, and the next block
overwrites it. The sums say whether a token moves and from which block; that one alone is formed
again, for the rows that draw from it, all of them together the work of one block.

The clamped distribution of the uniform graph, and a temperature or top-p, need the sum of a row
before its weights: such rows are formed whole (:mod:`sedd_fast.backends.row_blocks`). So are rows
that one workspace holds, and those that leave the range of float32 or have no valid distribution.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.blocked_head import ROW_BYTES, Block
from sedd_fast.backends.categorical import pick
from sedd_fast.backends.coefficients import log_output_scale, reverse_coefficients
from sedd_fast.backends.cpp.head_block import Rows, add_block
from sedd_fast.backends.cpp.reverse_step import reverse_step
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs

#: Rows drawn at a time: their weights, in float64, are few.
DRAWN = 64


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one product of the rows that may move."""
    linear, rows = linear.for_products(), linear.read(reverse)
    whole_rows = reverse.changes_shares or reverse.is_clamped
    if whole_rows or len(rows) <= row_blocks.rows_at_once(linear):
        return row_blocks.linear_reverse_step(replace(linear, rows=rows), reverse, reverse_step)
    step = _Step(linear, reverse.contiguous())
    whole = [step(some) for some in rows[rows >= 0].split(step.count)]
    others = replace(linear, rows=torch.cat(whole))
    return row_blocks.linear_reverse_step(others, replace(reverse, x_t=step.x_s), reverse_step)


class _Step:
    """One step of all rows, ``count`` at a time; ``x_s`` (B, L) is where they go."""

    def __init__(self, linear: Linear, reverse: ReverseInputs) -> None:
        self.linear, self.reverse = linear, reverse
        self.x_s = reverse.x_t.clone()
        self.weight = linear.weight[: reverse.read_states]
        self.bias = linear.bias_fp32()
        self.states = min(ROW_BYTES // linear.dtype.itemsize, len(self.weight))
        blocks = -(-len(self.weight) // self.states)
        each = (self.states + 2 * linear.hidden.shape[-1]) * linear.dtype.itemsize + 8 * blocks
        self.count = max(1, linear.workspace // each)

    def __call__(self, rows: Tensor) -> Tensor:
        """Move the rows (R,) that can be; returns those that must be formed whole."""
        hidden, at = self.linear.gathered(rows), self.reverse.at(rows)
        sums = self._sums(hidden, at.x_t.squeeze(1))
        total = sums.sum(0)
        shift = torch.zeros_like(total)
        if at.scale_by_sigma:
            shift = -log_output_scale(at.sigma, at.vocab_size)
        terms = reverse_coefficients(at, total[:, None], shift[:, None])
        moving = terms.alpha.squeeze(1) * total
        stay = terms.gamma.squeeze(1)
        weight = moving + stay.clamp(min=0)
        good = (total > 1e-30) & torch.isfinite(total) & torch.isfinite(weight) & (weight > 0)
        assert at.u is not None
        u0, u1 = at.u.squeeze(1).unbind(-1)
        moves = (good & (u0 * weight < moving)).nonzero().squeeze(1)
        self._draw(rows[moves], hidden[moves], sums[:, moves], u1[moves])
        return rows[~good]

    def _sums(self, hidden: Tensor, x_t: Tensor) -> Tensor:
        """(blocks, R) float64: the sums of exp(f) over the states of a block but x_t, NaN where
        float32 has overflowed.
        """
        memory = hidden.new_empty(len(hidden) * self.states)
        starts = range(0, len(self.weight), self.states)
        sums = torch.zeros(len(starts), len(hidden), dtype=torch.float64)
        for block, begin in enumerate(starts):
            w = self._block(begin)
            scores = memory[: len(hidden) * len(w)].view(len(hidden), len(w))
            part = Block(hidden, w, self.bias[begin : begin + len(w)], begin, scores, None)
            overflowed = add_block(part, Rows(x_t, sums[block]))
            if overflowed is not None:
                sums[block][overflowed] = torch.nan
        return sums

    def _block(self, begin: int) -> Tensor:
        return self.weight[begin : begin + self.states].to(self.linear.dtype)

    def _draw(self, rows: Tensor, hidden: Tensor, sums: Tensor, u: Tensor) -> None:
        """Move the rows (R,): the state at which the running sum of weights passes u of it all."""
        chosen, share = pick(sums.T.contiguous(), u)
        for block in chosen.unique().tolist():
            begin = block * self.states
            w = self._block(begin)
            for some in (chosen == block).nonzero().squeeze(1).split(DRAWN):
                f = torch.mm(hidden[some], w.T) + self.bias[begin : begin + len(w)]
                if len(self.weight) == self.reverse.dim:  # x_t is among them; it is not read
                    own = self.reverse.x_t.flatten()[rows[some], None] - begin
                    f.masked_fill_(torch.arange(len(w)) == own, -torch.inf)
                weights = (f - f.amax(1, keepdim=True)).exp()
                self.x_s.view(-1)[rows[some]] = begin + pick(weights, share[some])[0]
