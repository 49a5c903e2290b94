"""Cross entropy of a linear head around torch's products: a C++ kernel in place on every block."""

import torch
from torch import Tensor

from sedd_fast.backends import softmax_plan
from sedd_fast.backends.blocked_head import ROW_BYTES
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.cross_entropy_head import CrossEntropyHead, Rows
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.head import Linear, NeedsGrad
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import CrossEntropyInputs, finished


class BlocksHead(CrossEntropyHead):
    """For products of 16-bit numbers, for which torch has the processor's instructions."""

    def __init__(self, linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> None:
        super().__init__(linear, entropy, needs)
        states, step = len(linear.weight), ROW_BYTES // linear.dtype.itemsize
        self.blocks = [slice(y, min(y + step, states)) for y in range(0, states, step)]
        self.starts = torch.tensor([at.start for at in self.blocks] + [states])

    def sizes(self) -> softmax_plan.Head:
        states, width = self.linear.weight.shape
        block, item = self.blocks[0].stop, self.linear.dtype.itemsize
        row_bytes = width * (2 * item + max(4, item)) + block * item
        rows, accumulator = len(self.index), self.accumulator_bytes()
        return softmax_plan.Head(
            rows, states, width, block, self.linear.workspace, item, row_bytes, 0, accumulator, 1,
            rows, softmax_plan.TORCH,
        )  # fmt: skip

    def memory_numbers(self, rows: int, kept: int) -> int:
        """A block, unless all are kept, and the last ``kept``."""
        states = sum(at.stop - at.start for at in self.blocks[len(self.blocks) - kept :])
        states += self.blocks[0].stop * (kept < len(self.blocks))
        return rows * states

    def form(self, rows: Rows, shift_known: bool) -> None:
        for number, e in enumerate(self._memory(rows)):
            stored = rows.total is not None or self._is_kept(number, rows)
            find_shift = number == 0 and not shift_known
            self._exponentials(number, rows, e, stored, rows.sum_exp, find_shift)
            if rows.total is not None:
                accumulate(rows.total, e, self._weight(number, e), again=number > 0)

    def largest(self, hidden: Tensor) -> Tensor:
        found = self.losses.new_full((len(hidden),), -torch.inf)
        for number, at in enumerate(self.blocks):
            f = finished(hidden @ self._weight(number, hidden).T, self.bias[at], self.entropy)
            found = torch.maximum(found, f.amax(1).double())
        return torch.where(found.isfinite(), found, 0.0)

    def add_to_weight(self, rows: Rows) -> None:
        memory, at_target = self._memory(rows), self.at_target(rows)
        bounds = self._bounds(rows)
        for number in reversed(range(len(self.blocks))):  # the last ones may still be in a cache
            e = memory[number]
            if not self._is_kept(number, rows):
                self._exponentials(number, rows, e, True)
            self._put_targets(number, rows, e, at_target, bounds)
            self._add(number, rows, e)

    def only_pass(self, rows: Rows) -> None:
        bounds = self._bounds(rows)
        for number, e in enumerate(self._memory(rows)):
            self._exponentials(number, rows, e, True)
            self._put_targets(number, rows, e, self.at_target(rows), bounds)
            if rows.total is not None:
                accumulate(rows.total, e, self._weight(number, e), again=number > 0)
            self._add(number, rows, e)

    def _is_kept(self, number: int, rows: Rows) -> bool:
        return number >= len(self.blocks) - rows.kept

    def _bounds(self, rows: Rows) -> list[int]:
        """Where in the order of targets those of every block begin."""
        return torch.searchsorted(rows.ordered, self.starts).tolist()

    def _memory(self, rows: Rows) -> list[Tensor]:
        """(R, n) for every block, of its own for those that are kept, shared by the others."""
        made, first, count = [], len(self.blocks) - rows.kept, len(rows.to)
        begin = self.blocks[0].stop * (first > 0)
        for number, at in enumerate(self.blocks):
            n, where = at.stop - at.start, 0 if number < first else begin
            made.append(rows.memory[where * count : (where + n) * count].view(count, n))
            begin += n * (number >= first)
        return made

    def _weight(self, number: int, like: Tensor) -> Tensor:
        return self.linear.weight[self.blocks[number]].to(like.dtype)

    def _exponentials(
        self,
        number: int,
        rows: Rows,
        e: Tensor,
        stored: bool,
        sum_exp: Tensor | None = None,
        find_shift: bool = False,
    ) -> None:
        """One product, and the exponentials of a block in its place if they are ``stored``."""
        at = self.blocks[number]
        torch.mm(rows.hidden, self._weight(number, e).T, out=e)
        made = kernels().HeadBlock(
            e.data_ptr(), DTYPES[e.dtype], *e.shape, e.stride(0), at.start,
            self.bias[at].data_ptr(), e.data_ptr() if stored else 0, False, 0,
        )  # fmt: skip
        tensors = rows.target, rows.shift, sum_exp, rows.f_target, rows.e_target
        found = kernels().CrossEntropyRows(*map(address, tensors))
        cap, threads = self.entropy.softcap, torch.get_num_threads()
        kernels().linear_cross_entropy(made, found, cap, find_shift, threads)

    def _put_targets(
        self, number: int, rows: Rows, e: Tensor, at_target: Tensor, bounds: list[int]
    ) -> None:
        """The gradient at the targets, in units of a, among the exponentials."""
        here = rows.order[bounds[number] : bounds[number + 1]]
        column = rows.target[here] - self.blocks[number].start
        e[here, column] = at_target[here].to(e.dtype)

    def _add(self, number: int, rows: Rows, e: Tensor) -> None:
        """Add a block to the gradients of weight and bias."""
        at = self.blocks[number]
        if self.of_weight is not None:
            accumulate(self.of_weight[at], e.T, rows.scaled, again=rows.number > 0)
        if self.of_bias is not None:
            self.of_bias[at] += torch.mv(e.T, rows.factor.to(e.dtype))
