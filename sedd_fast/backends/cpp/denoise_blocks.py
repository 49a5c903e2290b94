"""The statistics of a denoising step around torch's products: a C++ kernel on every block."""

import functools

import torch
from torch import Tensor

from sedd_fast.backends.blocked_head import ROW_BYTES
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.denoise_head import DenoiseHead, RowStatistics
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Linear
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import DenoiseInputs

#: Rows whose group of the weight is gathered at a time, to be in the caches together.
GATHERED = 16


class BlocksDenoise(DenoiseHead):
    """For products of 16-bit numbers, for which torch has the processor's instructions."""

    #: A block of any dtype holds a whole number of groups.
    group = 126

    def __init__(self, linear: Linear, inputs: DenoiseInputs, bias: Tensor) -> None:
        super().__init__(linear, inputs, bias)
        self.step = min(ROW_BYTES // linear.dtype.itemsize, len(bias))

    def count(self) -> int:
        linear, states, item = self.linear, len(self.bias), self.linear.dtype.itemsize
        each = (self.step + linear.hidden.shape[-1]) * item + 24 * -(-states // self.step)
        each += self.inputs.embedding * 2 * linear.hidden.shape[-1] * max(4, item)
        each += self.draws * 8 * self.groups
        return max(1, self.room // each)

    def statistics(self, hidden: Tensor) -> RowStatistics:
        found = _Statistics(self, hidden)
        for begin in range(0, len(self.bias), self.step):
            found.add(begin)
        return RowStatistics(
            found.log_sum(), found.entropy(), found.top, found.second, found.argmax,
            found.embedding(), found.group_weights,
        )  # fmt: skip

    def group_scores(self, hidden: Tensor, group: Tensor) -> Tensor:
        y = group[:, None] * self.group + torch.arange(self.group)
        y = y.clamp(max=len(self.bias) - 1)
        made = hidden.new_empty(y.shape)
        for some in torch.arange(len(y)).split(GATHERED):
            weight = self.linear.weight[y[some]].to(hidden.dtype)  # (r, n, H)
            made[some] = torch.bmm(weight, hidden[some, :, None])[..., 0]
        return made


class _Statistics:
    """Of rows (R, H): for every block of states, and so far."""

    def __init__(self, head: BlocksDenoise, hidden: Tensor) -> None:
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
        groups = None if self.groups is None else self.groups[:, begin // head.group :]
        wanted = head.inputs.top
        tops = (x if wanted else None for x in (self.top, self.second, self.argmax))
        found = kernels().DenoiseRows(
            *map(address, sums), address(groups), head.group, head.groups, *map(address, tops)
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

    def group_weights(self, some: slice) -> Tensor:
        """(r, groups) of some rows: sums at the temperature, relative to the row's largest f."""
        assert self.groups is not None
        largest, head = self.largest[:, some], self.head
        apart = (largest - largest.amax(0)) * head.inputs.inverse_temperature
        each = apart.exp().T.repeat_interleave(-(-head.step // head.group), dim=1)
        return self.groups[some] * each[:, : head.groups]

    def embedding(self) -> Tensor | None:
        """(R, H) the mean of the weights under p, or None."""
        if self.soft is None:
            return None
        _, sums = self._relative()
        return self.soft / sums.sum(0).to(self.soft.dtype)[:, None]
