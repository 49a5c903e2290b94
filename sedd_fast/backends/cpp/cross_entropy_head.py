"""Cross entropy of a linear head: what is the same however its products are formed.

The first pass over the blocks of states forms exponentials e = exp(f - shift), with the largest f
of a row's first block as its shift, and adds them up. The gradient of f at y is linear in them,

    a e_y - [y = target] weight,    a = weight * (1 + 2 z log_sum) / sum of e,

and the factor a is known after the last block only. So the gradient of the hidden states is added
up without it, in the same pass, and multiplied by it at the end; that of the weight is the product
of e, kept or formed again, with a * h. How much is kept is :mod:`sedd_fast.backends.softmax_plan`'s
choice. With sums that are known (the backward of reduction "none") one pass does it all.

Two classes form the passes: :class:`.cross_entropy_products.ProductsHead` in C++, products
included, and :class:`.cross_entropy_blocks.BlocksHead` around torch's products, where these have
instructions of their own for 16-bit numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sedd_fast.backends import softmax_plan
from sedd_fast.backends.cpp.linear_score_entropy import in_huge_pages
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.softmax import CrossEntropyInputs, head_bias

#: The sum of a row within these bounds has all its digits, and so have its products.
LEAST, MOST = 1e-30, 1e30


def for_cross_entropy(linear: Linear) -> Linear:
    """The head in the dtype of its products: not float16, whose range exponentials leave."""
    linear = linear.for_products()
    return replace(linear, dtype=torch.float32) if linear.dtype == torch.float16 else linear


@dataclass
class Rows:
    """Some rows of the head, (R,) each, and what is found of them.

    Attributes:
        number: of the chunk.
        to: where their results go: the position, or one past the last for none.
        hidden: (R, H) in the dtype of the products; 0 where the weight is 0.
        target, weight: their states, and factors, float64.
        ordered, order: the targets in rising order, and their rows.
        shift, sum_exp, f_target, e_target: as in csrc/cpu/operations.h.
        total: (R, H) the gradient of the hidden state, at first in units of a; or None.
        kept: blocks, the last ones, whose exponentials stay in memory between the passes.
        memory: for these, and whatever else a pass keeps between its blocks.
        scaled: (R, H) a * hidden.
        factor: a, float64.
        missing: sum_exp over the slope of the log-sum-exp: the gradient at the target is
            a * (e_target - missing) times f's slope, of which float32 would lose digits.
    """

    number: int
    to: Tensor
    hidden: Tensor
    target: Tensor
    weight: Tensor
    ordered: Tensor
    order: Tensor
    shift: Tensor
    sum_exp: Tensor
    f_target: Tensor
    e_target: Tensor
    total: Tensor | None
    kept: int
    memory: Tensor
    scaled: Tensor
    factor: Tensor
    missing: Tensor


class CrossEntropyHead(ABC):
    """A head, its inputs and its results so far."""

    def __init__(self, linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> None:
        self.linear, self.entropy, self.needs = linear, entropy, needs
        self.index, self.bias = linear.read(entropy), head_bias(linear, entropy)
        positions = linear.hidden.shape[:2].numel() + 1  # the last for what belongs to no position
        self.losses = linear.hidden.new_zeros(positions, dtype=torch.float64)
        self.log_sums = torch.zeros_like(self.losses)
        self.of_hidden: Tensor | None = None
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None

    @abstractmethod
    def sizes(self) -> softmax_plan.Head:
        """What the plan is made of."""

    @abstractmethod
    def memory_numbers(self, rows: int, kept: int) -> int:
        """How many numbers ``Rows.memory`` holds for so many rows, and kept blocks."""

    @abstractmethod
    def form(self, rows: Rows, shift_known: bool) -> None:
        """The sums of all exponentials, and the gradient of the hidden states in units of a."""

    @abstractmethod
    def largest(self, hidden: Tensor) -> Tensor:
        """(R,) the largest f of rows, 0 where that is not finite."""

    @abstractmethod
    def add_to_weight(self, rows: Rows) -> None:
        """The gradients of weight and bias, of rows whose factors are known."""

    @abstractmethod
    def only_pass(self, rows: Rows) -> None:
        """All gradients of rows whose ``shift`` and ``sum_exp`` are known."""

    def plan(self) -> softmax_plan.Plan:
        """Rows at a time, and blocks kept, for gradients formed in the forward pass."""
        if not (self.needs.weight or self.needs.bias):
            return softmax_plan.Plan(self.rows_at_once(), 0)
        return softmax_plan.plan(self.sizes())

    def rows_at_once(self) -> int:
        """Rows at a time where nothing is kept."""
        return softmax_plan.fewest(self.sizes())

    def accumulator_bytes(self) -> int:
        """Bytes of a sum of weight gradients that is not the result."""
        weight = self.linear.weight
        summed = gradient_dtype(weight.dtype) in (torch.float32, torch.float64)
        return 0 if summed or not self.needs.weight else 4 * weight.numel()

    def chunks(self, count: int, kept: int = 0) -> Iterator[Rows]:
        """The rows that are read, so many at a time; their results are stored in between."""
        self._allocate(several=len(self.index) > count)
        numbers = self.memory_numbers(min(count, len(self.index)), kept)
        memory = in_huge_pages((numbers,), self.linear.weight, self.linear.dtype)
        for number, index in enumerate(self.index.split(count) if len(self.index) else ()):
            rows = self._rows(number, index, memory, kept)
            yield rows
            if self.of_hidden is not None and rows.total is not None:
                self.of_hidden[rows.to] = rows.total.to(self.of_hidden.dtype)

    def _rows(self, number: int, index: Tensor, memory: Tensor, kept: int) -> Rows:
        at = index.clamp(min=0)
        weight = torch.where(index >= 0, self.entropy.row_weight.flatten()[at], 0.0)
        target = torch.where(weight != 0, self.entropy.target.flatten()[at], 0)
        hidden = self.linear.gathered(index)
        hidden.masked_fill_((weight == 0)[:, None], 0)  # a NaN there would spoil whole products
        ordered, order = target.sort()
        shift, sum_exp, f_target, e_target, factor, missing = weight.new_zeros(6, len(index))
        to = torch.where(index < 0, len(self.losses) - 1, index)
        dtype = fp32_or_fp64(hidden.dtype)
        total = torch.empty_like(hidden, dtype=dtype) if self.needs.hidden else None
        return Rows(
            number, to, hidden, target, weight, ordered, order, shift, sum_exp, f_target, e_target,
            total, kept, memory, hidden, factor, missing,
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
            dtype = fp32_or_fp64(self.linear.dtype) if several or dtype.itemsize > 2 else dtype
            self.of_weight = in_huge_pages(tuple(weight.shape), weight, dtype)
            if not len(self.index):
                self.of_weight.zero_()
        if needs.bias:
            self.of_bias = torch.zeros_like(self.bias)

    def first_pass(self, rows: Rows) -> None:
        """The sums, and the gradient of the hidden states in units of a.

        Rows whose sum, or weight over it, has left the range of float32 get their largest f as the
        shift, and all are formed again.
        """
        self.form(rows, shift_known=False)
        lost = (rows.sum_exp >= MOST) | (rows.sum_exp <= LEAST)
        small = rows.weight.abs() < LEAST * rows.sum_exp
        lost |= small & (rows.weight != 0) & (rows.sum_exp > len(self.bias))
        if bool(lost.any()):
            rows.shift[lost] = self.largest(rows.hidden[lost])
            rows.sum_exp.zero_()
            self.form(rows, shift_known=True)

    def finish(self, rows: Rows) -> None:
        """The losses of rows whose sums are complete."""
        log_sum = rows.shift + rows.sum_exp.log()
        nats = log_sum - rows.f_target + self.entropy.z_loss * log_sum**2
        self.losses[rows.to] = torch.where(rows.weight != 0, rows.weight * nats, 0.0)
        self.log_sums[rows.to] = log_sum

    def find_factors(self, rows: Rows) -> None:
        """a, a * hidden and what is missing at the targets, of rows whose sums are known."""
        slope = 1 + 2 * self.entropy.z_loss * (rows.shift + rows.sum_exp.log())
        slope = torch.where(slope.abs() < LEAST, LEAST, slope)  # it divides: not 0
        rows.factor = torch.where(rows.weight != 0, rows.weight * slope / rows.sum_exp, 0.0)
        rows.missing = rows.sum_exp / slope
        dtype = fp32_or_fp64(rows.hidden.dtype)
        scaled = rows.hidden.to(dtype) * rows.factor.to(dtype)[:, None]
        rows.scaled = scaled.to(rows.hidden.dtype)

    def at_target(self, rows: Rows) -> Tensor:
        """(R,) the gradient at the target over a."""
        found = rows.e_target - rows.missing
        if cap := self.entropy.softcap:
            found = found * (1 - (rows.f_target / cap) ** 2)
        # A row without weight may stand at an excluded state, of which f is infinite.
        return torch.where(rows.weight != 0, found, 0.0)

    def second_pass(self, rows: Rows) -> None:
        """The gradients of weight and bias, and what is missing of the hidden states'."""
        self.find_factors(rows)
        if rows.total is not None:
            dtype = rows.total.dtype
            own = self.linear.weight[rows.target].to(self.linear.dtype).to(dtype)
            rows.total.addcmul_(own, self.at_target(rows).to(dtype)[:, None])
            rows.total.mul_(rows.factor.to(dtype)[:, None])
        if self.of_weight is not None or self.of_bias is not None:
            self.add_to_weight(rows)

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
