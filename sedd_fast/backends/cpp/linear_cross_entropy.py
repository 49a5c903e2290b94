"""Cross entropy of a linear head: torch's products, and a C++ kernel in place on every block.

The first pass over the blocks of states forms exponentials e = exp(f - shift), with the largest f
of a row's first block as its shift, and adds them up. The gradient of f at y is linear in them,

    a e_y - [y = target] weight,    a = weight * (1 + 2 z log_sum) / sum of e,

and the factor a is known after the last block only. So the gradient of the hidden states is added
up without it, in the same pass, and multiplied by it at the end; that of the weight is the product
of e, kept or formed again, with a * h. How much is kept is :mod:`sedd_fast.backends.softmax_plan`'s
choice. With sums that are known (the backward of reduction "none") one pass does it all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sedd_fast.backends import softmax_plan
from sedd_fast.backends.blocked_head import ROW_BYTES
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.linear_score_entropy import in_huge_pages
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import CrossEntropyInputs, finished, head_bias

#: The sum of a row within these bounds has all its digits, and so have its products.
LEAST, MOST = 1e-30, 1e30


def linear_cross_entropy(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor]:
    """(B, L) losses, and float64 logarithms of the rows' sums: one product."""
    head = _Head(linear, entropy, NeedsGrad())
    for rows in head.chunks(head.rows_at_once()):
        head.first_pass(rows)
        head.finish(rows)
    return head.loss(), head.log_sum()


def linear_cross_entropy_with_grad(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and the gradients of their sum: three products, or up to four."""
    head = _Head(linear, entropy, needs)
    for rows in head.chunks(*head.plan()):
        head.first_pass(rows)
        head.finish(rows)
        head.second_pass(rows)
    return head.loss(), head.gradients()


def linear_cross_entropy_backward(
    linear: Linear, entropy: CrossEntropyInputs, log_sum: Tensor, needs: NeedsGrad
) -> Gradients:
    """The gradients of the sum of the losses; with the logarithms of sums known, three products."""
    head = _Head(linear, entropy, needs)
    known = torch.cat((log_sum.flatten(), log_sum.new_zeros(1)))
    for rows in head.chunks(head.rows_at_once()):
        log_sum = known[rows.to]
        rows.shift.copy_(log_sum.to(fp32_or_fp64(rows.hidden.dtype)))  # as the kernel rounds it
        rows.sum_exp.copy_((log_sum - rows.shift).exp())
        head.only_pass(rows)
    return head.gradients()


@dataclass
class _Rows:
    """Some rows of the head, (R,) each, and what is found of them.

    Attributes:
        number: of the chunk.
        to: where their results go: the position, or one past the last for none.
        hidden: (R, H) in the dtype of the products; 0 where the weight is 0.
        target, weight: their states, and factors, float64.
        shift, sum_exp, f_target, e_target: as in csrc/cpu/operations.h.
        total: (R, H) the gradient of the hidden state, at first in units of a; or None.
        order, bounds: the rows by target, and where in that order those of every block begin.
        memory: (R, n) for every block, of its own for the last ``kept``, shared by the others.
        scaled: (R, H) a * hidden.
        factor, at_target: a, and the gradient at the target in units of a, float64.
    """

    number: int
    to: Tensor
    hidden: Tensor
    target: Tensor
    weight: Tensor
    shift: Tensor
    sum_exp: Tensor
    f_target: Tensor
    e_target: Tensor
    total: Tensor | None
    order: Tensor
    bounds: list[int]
    memory: list[Tensor]
    kept: int
    scaled: Tensor
    factor: Tensor
    at_target: Tensor

    def is_kept(self, block: int) -> bool:
        """Whether the exponentials of a block stay where they are between the passes."""
        return block >= len(self.memory) - self.kept

    def in_block(self, block: int) -> Tensor:
        """The rows whose target is a state of that block."""
        return self.order[self.bounds[block] : self.bounds[block + 1]]


class _Head:
    """A head, its inputs and its results so far."""

    def __init__(self, linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> None:
        linear = linear.for_products()
        if linear.dtype == torch.float16:  # which exponentials leave
            linear = replace(linear, dtype=torch.float32)
        self.linear, self.entropy, self.needs = linear, entropy, needs
        self.index, self.bias = linear.read(entropy), head_bias(linear, entropy)
        states, step = len(linear.weight), ROW_BYTES // linear.dtype.itemsize
        self.blocks = [slice(y, min(y + step, states)) for y in range(0, states, step)]
        self.starts = torch.tensor([at.start for at in self.blocks] + [states])
        positions = linear.hidden.shape[:2].numel() + 1  # the last for what belongs to no position
        self.losses = linear.hidden.new_zeros(positions, dtype=torch.float64)
        self.log_sums = torch.zeros_like(self.losses)
        self.of_hidden: Tensor | None = None
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None

    def plan(self) -> softmax_plan.Plan:
        """Rows at a time, and blocks kept, for gradients formed in the forward pass."""
        if not (self.needs.weight or self.needs.bias):
            return softmax_plan.Plan(self.rows_at_once(), 0)
        return softmax_plan.plan(self._sizes())

    def rows_at_once(self) -> int:
        """Rows at a time where nothing is kept."""
        return softmax_plan.fewest(self._sizes())

    def _sizes(self) -> softmax_plan.Head:
        weight, block = self.linear.weight, self.blocks[0].stop
        summed = gradient_dtype(weight.dtype) in (torch.float32, torch.float64)
        accumulator = 0 if summed or not self.needs.weight else 4
        states, width = weight.shape
        item, workspace = self.linear.dtype.itemsize, self.linear.workspace
        return softmax_plan.Head(
            len(self.index), states, width, block, workspace, item, accumulator
        )

    def chunks(self, count: int, kept: int = 0) -> Iterator[_Rows]:
        """The rows that are read, so many at a time; their results are stored in between."""
        self._allocate(several=len(self.index) > count)
        buffer = self._buffer(min(count, len(self.index)), kept)
        for number, index in enumerate(self.index.split(count) if len(self.index) else ()):
            rows = self._rows(number, index, buffer, kept)
            yield rows
            if self.of_hidden is not None and rows.total is not None:
                self.of_hidden[rows.to] = rows.total.to(self.of_hidden.dtype)

    def _rows(self, number: int, index: Tensor, buffer: Tensor, kept: int) -> _Rows:
        at = index.clamp(min=0)
        weight = torch.where(index >= 0, self.entropy.row_weight.flatten()[at], 0.0)
        target = torch.where(weight != 0, self.entropy.target.flatten()[at], 0)
        hidden = self.linear.gathered(index)
        hidden.masked_fill_((weight == 0)[:, None], 0)  # a NaN there would spoil whole products
        ordered, order = target.sort()
        numbers = weight.new_zeros(6, len(index))
        dtype = fp32_or_fp64(hidden.dtype)
        shift, sum_exp, f_target, e_target, factor, at_target = numbers
        to = torch.where(index < 0, len(self.losses) - 1, index)
        total = torch.empty_like(hidden, dtype=dtype) if self.needs.hidden else None
        bounds = torch.searchsorted(ordered, self.starts).tolist()
        return _Rows(
            number, to, hidden, target, weight, shift, sum_exp, f_target, e_target, total, order,
            bounds, self._memory(buffer, len(index), kept), kept, hidden, factor, at_target,
        )  # fmt: skip

    def _allocate(self, several: bool) -> None:
        """Memory for the wanted gradients; that of the weight in float32 where chunks add up."""
        weight, needs = self.linear.weight, self.needs
        if needs.hidden:
            dtype = gradient_dtype(self.linear.hidden.dtype)
            shape = len(self.losses), weight.shape[1]
            self.of_hidden = self.linear.hidden.new_zeros(shape, dtype=dtype)
        if needs.weight:
            dtype = gradient_dtype(weight.dtype)
            dtype = fp32_or_fp64(dtype) if several else dtype
            self.of_weight = in_huge_pages(tuple(weight.shape), weight, dtype)
            if not len(self.index):
                self.of_weight.zero_()
        if needs.bias:
            self.of_bias = torch.zeros_like(self.bias)

    def _buffer(self, rows: int, kept: int) -> Tensor:
        """Memory for a block, unless all are kept, and for the last ``kept``."""
        states = sum(at.stop - at.start for at in self.blocks[len(self.blocks) - kept :])
        states += self.blocks[0].stop * (kept < len(self.blocks))
        return in_huge_pages((rows * states,), self.linear.weight, self.linear.dtype)

    def _memory(self, buffer: Tensor, rows: int, kept: int) -> list[Tensor]:
        """(R, n) of it for every block."""
        made, first = [], len(self.blocks) - kept
        begin = self.blocks[0].stop * (first > 0)
        for number, at in enumerate(self.blocks):
            n, where = at.stop - at.start, 0 if number < first else begin
            made.append(buffer[where * rows : (where + n) * rows].view(rows, n))
            begin += n * (number >= first)
        return made

    def first_pass(self, rows: _Rows) -> None:
        """The sums of all exponentials, and the gradient of the hidden states in units of a.

        Rows whose sum has left the range of float32 get their largest f as the shift, and all are
        formed again.
        """
        self._first_pass(rows, shift_known=False)
        lost = (rows.sum_exp >= MOST) | (rows.sum_exp <= LEAST)
        if bool(lost.any()):
            rows.shift[lost] = self._largest(rows.hidden[lost])
            self._first_pass(rows, shift_known=True)

    def _first_pass(self, rows: _Rows, shift_known: bool) -> None:
        rows.sum_exp.zero_()
        for number, e in enumerate(rows.memory):
            stored = rows.total is not None or rows.is_kept(number)
            find_shift = number == 0 and not shift_known
            self._exponentials(number, rows, e, stored, rows.sum_exp, find_shift)
            if rows.total is not None:
                accumulate(rows.total, e, self._weight(number, e), again=number > 0)

    def _largest(self, hidden: Tensor) -> Tensor:
        """(R,) the largest f of rows, 0 where that is not finite."""
        found = self.losses.new_full((len(hidden),), -torch.inf)
        for number, at in enumerate(self.blocks):
            f = finished(hidden @ self._weight(number, hidden).T, self.bias[at], self.entropy)
            found = torch.maximum(found, f.amax(1).double())
        return torch.where(found.isfinite(), found, 0.0)

    def finish(self, rows: _Rows) -> None:
        """The losses of rows whose sums are complete."""
        log_sum = rows.shift + rows.sum_exp.log()
        nats = log_sum - rows.f_target + self.entropy.z_loss * log_sum**2
        self.losses[rows.to] = torch.where(rows.weight != 0, rows.weight * nats, 0.0)
        self.log_sums[rows.to] = log_sum

    def find_factors(self, rows: _Rows) -> None:
        """a, and a * hidden, of rows whose sums are known."""
        slope = self._slope_of_log_sum(rows)
        rows.factor = torch.where(rows.weight != 0, rows.weight * slope / rows.sum_exp, 0.0)
        dtype = fp32_or_fp64(rows.hidden.dtype)
        scaled = rows.hidden.to(dtype) * rows.factor.to(dtype)[:, None]
        rows.scaled = scaled.to(rows.hidden.dtype)

    def _slope_of_log_sum(self, rows: _Rows) -> Tensor:
        """1 + 2 z log_sum, which divides: not 0."""
        slope = 1 + 2 * self.entropy.z_loss * (rows.shift + rows.sum_exp.log())
        return torch.where(slope.abs() < LEAST, LEAST, slope)

    def find_at_target(self, rows: _Rows) -> None:
        """The gradient at the target, a * at_target, of which float32 would lose digits."""
        missing = rows.e_target - rows.sum_exp / self._slope_of_log_sum(rows)
        if cap := self.entropy.softcap:
            missing = missing * (1 - (rows.f_target / cap) ** 2)
        # A row without weight may stand at an excluded state, of which f is infinite.
        rows.at_target = torch.where(rows.weight != 0, missing, 0.0)

    def second_pass(self, rows: _Rows) -> None:
        """The gradients of weight and bias, and what is missing of the hidden states'."""
        self.find_factors(rows)
        self.find_at_target(rows)
        if rows.total is not None:
            dtype = rows.total.dtype
            own = self.linear.weight[rows.target].to(self.linear.dtype).to(dtype)
            rows.total.addcmul_(own, rows.at_target.to(dtype)[:, None])
            rows.total.mul_(rows.factor.to(dtype)[:, None])
        if self.of_weight is None and self.of_bias is None:
            return
        for number in reversed(range(len(self.blocks))):  # the last ones may still be in a cache
            e = rows.memory[number]
            if not rows.is_kept(number):
                self._exponentials(number, rows, e, True)
            self._put_targets(number, rows, e)
            self._add(number, rows, e)

    def only_pass(self, rows: _Rows) -> None:
        """All gradients of rows whose log_sum is known: ``shift``, with a sum of 1."""
        self.find_factors(rows)
        for number, e in enumerate(rows.memory):
            self._exponentials(number, rows, e, True)
            self.find_at_target(rows)
            self._put_targets(number, rows, e)
            if rows.total is not None:
                accumulate(rows.total, e, self._weight(number, e), again=number > 0)
            self._add(number, rows, e)
        if rows.total is not None:
            rows.total.mul_(rows.factor.to(rows.total.dtype)[:, None])

    def _weight(self, number: int, like: Tensor) -> Tensor:
        return self.linear.weight[self.blocks[number]].to(like.dtype)

    def _exponentials(
        self,
        number: int,
        rows: _Rows,
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

    def _put_targets(self, number: int, rows: _Rows, e: Tensor) -> None:
        """The gradient at the targets, in units of a, among the exponentials."""
        here = rows.in_block(number)
        column = rows.target[here] - self.blocks[number].start
        e[here, column] = rows.at_target[here].to(e.dtype)

    def _add(self, number: int, rows: _Rows, e: Tensor) -> None:
        """Add a block to the gradients of weight and bias."""
        at = self.blocks[number]
        if self.of_weight is not None:
            accumulate(self.of_weight[at], e.T, rows.scaled, again=rows.number > 0)
        if self.of_bias is not None:
            self.of_bias[at] += torch.mv(e.T, rows.factor.to(e.dtype))

    def loss(self) -> Tensor:
        """(B, L) in the dtype of results."""
        made = self.losses[:-1].view(self.entropy.target.shape)
        return made.to(fp32_or_fp64(self.linear.dtype))

    def log_sum(self) -> Tensor:
        """(B, L) float64."""
        return self.log_sums[:-1].view(self.entropy.target.shape)

    def gradients(self) -> Gradients:
        """Those of the operands."""
        hidden = self.of_hidden
        if hidden is not None:
            hidden = hidden[:-1].view(self.linear.hidden.shape)
        return Gradients.of(self.linear, hidden, self.of_weight, self.of_bias)
