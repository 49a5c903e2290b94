"""What a denoising step asks of a row: torch's products, and a C++ kernel on every block.

The kernel adds up exp(f - m) over a block, m the largest f of the row there, so that nothing
overflows at any scale of the logits. For the draw it adds up, at the temperature, groups of states
within the block: the sums of all groups tell from which a row draws, and only that group is formed
again. With top-p the rows are formed whole for their draw (:mod:`sedd_fast.backends.row_blocks`).
"""

import functools

import torch
from torch import Tensor

from sedd_fast.backends import row_blocks, values
from sedd_fast.backends.blocked_head import ROW_BYTES
from sedd_fast.backends.categorical import pick
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.cpp.reverse_step import reverse_step
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Linear
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import (
    Denoised,
    DenoiseInputs,
    finished,
    head_bias,
    joined,
    stored,
)

#: States of a group: a block of any dtype holds a whole number of them.
GROUP = 126
#: Rows drawn at a time: the weights of a group of each are in the caches together.
DRAWN = 16


def linear_denoise(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """The fields of ``Denoised`` in order, (B, L) each; those not wanted are empty."""
    linear, rows = linear.for_products(), linear.listed()
    head = _Head(linear, inputs)
    found = joined([head.results(some) for some in rows.split(head.count)])
    return stored(found, linear, inputs, rows)


class _Head:
    """A head and what is asked of it; ``count`` rows at a time."""

    def __init__(self, linear: Linear, inputs: DenoiseInputs) -> None:
        self.linear, self.inputs = linear, inputs
        self.bias = head_bias(linear, inputs)
        states, item = len(linear.weight), linear.dtype.itemsize
        self.step = min(ROW_BYTES // item, states)
        self.groups = -(-states // GROUP)
        self.draws = inputs.u is not None and inputs.top_p == 1
        each = (self.step + linear.hidden.shape[-1]) * item + 24 * -(-states // self.step)
        each += inputs.embedding * 2 * linear.hidden.shape[-1] * max(4, item)
        each += self.draws * 3 * 8 * self.groups
        self.count = max(1, linear.workspace // each)

    def results(self, rows: Tensor) -> Denoised:
        """What is wanted of rows (R,), -1 for none."""
        hidden = self.linear.gathered(rows)
        found = _Statistics(self, hidden)
        for begin in range(0, len(self.bias), self.step):
            found.add(begin)
        log_sum = found.log_sum()
        good = torch.isfinite(log_sum) | (rows < 0)
        values.check_rows_drawable(good, rows, self.linear.hidden.shape[1])
        results = {"log_sum_exp": log_sum, "embedding": found.embedding()}
        if self.inputs.top:
            results["argmax"] = found.argmax
            top = found.top - log_sum
            results["max_log_prob"] = top
            results["margin"] = top.exp() - (found.second - log_sum).exp()
        if self.inputs.entropy:
            results["entropy"] = found.entropy()
        if self.inputs.u is not None:
            results["token"], f = self._tokens(rows, hidden, found)
            results["log_prob"] = f - log_sum
        return Denoised(**results)

    def _tokens(self, rows: Tensor, hidden: Tensor, found: "_Statistics") -> tuple[Tensor, Tensor]:
        """The drawn states (R,), and f there."""
        inputs = self.inputs
        assert inputs.u is not None
        if not self.draws:
            token = row_blocks.draw_whole_rows(self.linear, inputs, rows, reverse_step)
            own = self.linear.weight[token].to(hidden.dtype)
            return token, finished((hidden * own).sum(-1), self.bias[token], inputs).double()
        u = inputs.u.flatten(0, 1)[rows.clamp(min=0), 1]
        group, share = pick(found.group_weights(), u)
        token, f = torch.empty_like(group), torch.empty_like(share)
        for some in torch.arange(len(rows)).split(DRAWN):
            token[some], f[some] = self._in_group(hidden[some], group[some], share[some])
        return token, f

    def _in_group(self, hidden: Tensor, group: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The state of a group at which the running sum of weights passes a share, and f there."""
        states = len(self.bias)
        y = group[:, None] * GROUP + torch.arange(min(GROUP, states))  # (R, n)
        beyond = y >= states
        y = y.clamp(max=states - 1)
        weight = self.linear.weight[y].to(hidden.dtype)  # (R, n, H)
        f = finished(torch.bmm(weight, hidden[..., None])[..., 0], self.bias[y], self.inputs)
        f = f.masked_fill(beyond, -torch.inf)
        scaled = (f - f.amax(1, keepdim=True)).double() * self.inputs.inverse_temperature
        chosen, _ = pick(scaled.exp(), share)
        chosen = chosen[:, None]
        return y.gather(1, chosen).squeeze(1), f.gather(1, chosen).squeeze(1).double()


class _Statistics:
    """Of rows (R, H): for every block of states, and so far."""

    def __init__(self, head: _Head, hidden: Tensor) -> None:
        self.head, self.hidden = head, hidden
        rows, step = len(hidden), head.step
        numbers = functools.partial(torch.full, dtype=torch.float64)
        self.memory = hidden.new_empty(rows * step)
        blocks = -(-len(head.bias) // step)
        #: (blocks, R): largest f, sum of exp(f - largest), and of (f - largest) exp(f - largest).
        self.largest, self.sums, self.weighted = numbers((3, blocks, rows), 0.0)
        self.groups = numbers((rows, head.groups), 0.0) if head.draws else None
        #: (R,): the two largest f so far, and the state of the first, where they are wanted.
        self.top, self.second = numbers((2, rows), -torch.inf)
        self.argmax = torch.zeros(rows, dtype=torch.int64)
        #: (R, H): the sum of exp(f - highest) weight, relative to (R,) the highest f so far.
        self.soft: Tensor | None = None
        if head.inputs.embedding:
            self.soft = hidden.new_zeros(hidden.shape, dtype=fp32_or_fp64(hidden.dtype))
        self.highest = numbers((rows,), -torch.inf)

    def add(self, begin: int) -> None:
        """A block of states: one product, and one more for the embedding."""
        head, rows, number = self.head, len(self.hidden), begin // self.head.step
        at = slice(begin, begin + head.step)
        weight = head.linear.weight[at].to(self.hidden.dtype)
        f = self.memory[: rows * len(weight)].view(rows, len(weight))
        torch.mm(self.hidden, weight.T, out=f)
        made = kernels().HeadBlock(
            f.data_ptr(), DTYPES[f.dtype], *f.shape, f.stride(0), begin, head.bias[at].data_ptr(),
            0 if self.soft is None else f.data_ptr(), False, 0,
        )  # fmt: skip
        sums = (of[number] for of in (self.largest, self.sums, self.weighted))
        groups = None if self.groups is None else self.groups[:, begin // GROUP :]
        wanted = head.inputs.top
        tops = (x if wanted else None for x in (self.top, self.second, self.argmax))
        found = kernels().DenoiseRows(
            *map(address, sums), address(groups), GROUP, head.groups, *map(address, tops)
        )
        inverse, threads = head.inputs.inverse_temperature, torch.get_num_threads()
        kernels().linear_denoise(made, found, head.inputs.softcap, inverse, threads)
        if self.soft is not None:
            self._add_embedding(self.soft, f, weight, self.largest[number])

    def _add_embedding(self, soft: Tensor, e: Tensor, weight: Tensor, largest: Tensor) -> None:
        """Add e @ weight, e relative to the block's largest f, to a sum relative to the highest."""
        part = torch.empty_like(soft)
        accumulate(part, e, weight, again=False)
        highest = torch.maximum(self.highest, largest)
        known = torch.where(highest.isfinite(), highest, 0.0)  # no state of any probability so far
        old, new = (self.highest - known).exp(), (largest - known).exp()
        soft.mul_(old.to(part.dtype)[:, None])
        soft.addcmul_(part, new.to(part.dtype)[:, None])
        self.highest = highest

    def _relative(self) -> tuple[Tensor, Tensor]:
        """(R,) the largest f of a row; (blocks, R) the sums relative to it."""
        highest = self.largest.amax(0)
        return highest, self.sums * (self.largest - highest).exp()

    def log_sum(self) -> Tensor:
        """(R,) ln of the sum of exp(f); NaN or infinite where there is no distribution."""
        highest, sums = self._relative()
        return highest + sums.sum(0).log()

    def entropy(self) -> Tensor:
        """(R,) ln sum - sum of p f, f relative to the largest so that no digits are lost."""
        highest, sums = self._relative()
        total, apart = sums.sum(0), (self.largest - highest).clamp(min=-1e30)
        return total.log() - (self.weighted * apart.exp() + apart * sums).sum(0) / total

    def group_weights(self) -> Tensor:
        """(R, groups) sums at the temperature, all relative to the largest f of the row."""
        assert self.groups is not None
        apart = (self.largest - self.largest.amax(0)) * self.head.inputs.inverse_temperature
        each = apart.exp().T.repeat_interleave(-(-self.head.step // GROUP), dim=1)
        return self.groups * each[:, : self.head.groups]

    def embedding(self) -> Tensor | None:
        """(R, H) the mean of the weights under p, or None."""
        if self.soft is None:
            return None
        _, sums = self._relative()
        return self.soft / sums.sum(0).to(self.soft.dtype)[:, None]
