"""Cross entropy of a linear head in C++, products included (csrc/cpu/head_products.cpp)."""

import torch
from torch import Tensor

from sedd_fast.backends import softmax_plan
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.cross_entropy_head import CrossEntropyHead, Rows
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.cpp.products import CppHead
from sedd_fast.backends.head import Linear, NeedsGrad
from sedd_fast.backends.softmax import CrossEntropyInputs

#: Rows at a time: the hidden states and outputs of more are not in the second cache together.
MOST_ROWS = 512


class ProductsHead(CrossEntropyHead):
    """For products in float32 and float64."""

    def __init__(self, linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> None:
        super().__init__(linear, entropy, needs)
        self.head = CppHead(linear, self.bias, entropy.softcap)
        self.blocks = -(-len(linear.weight) // self.head.block)

    def sizes(self) -> softmax_plan.Head:
        states, width = self.linear.weight.shape
        head, item = self.head, self.linear.dtype.itemsize
        summed = width * (3 + head.threads) * (self.needs.hidden or self.needs.weight)
        row_bytes = item * (2 * width + summed + head.block * head.threads) + 200
        fixed = 2 * head.threads * head.block * width * item
        return softmax_plan.Head(
            len(self.index), states, width, head.block, self.linear.workspace, item, row_bytes,
            fixed, self.accumulator_bytes(), head.panel, MOST_ROWS, softmax_plan.OURS,
        )  # fmt: skip

    def memory_numbers(self, rows: int, kept: int) -> int:
        """The kept blocks, of padded rows."""
        states = len(self.linear.weight) - self._first_kept(kept)
        return -(-rows // self.head.panel) * self.head.panel * states

    def _first_kept(self, kept: int) -> int:
        return min(len(self.linear.weight), (self.blocks - kept) * self.head.block)

    def form(self, rows: Rows, shift_known: bool) -> None:
        if not shift_known:
            rows.shift.copy_(self.largest(rows.hidden, self.head.block))
        self._run(rows, sum_exp=rows.sum_exp, of_hidden=rows.total)

    def largest(self, hidden: Tensor, states: int | None = None) -> Tensor:
        found = self.losses.new_empty(len(hidden))
        states = min(states or len(self.bias), len(self.bias))
        kernels().head_largest(self.head.of(hidden), states, found.data_ptr())
        return torch.where(found.isfinite(), found, 0.0)

    def add_to_weight(self, rows: Rows) -> None:
        self._run(rows, read=True, of_weight=self.of_weight, of_bias=self.of_bias)

    def only_pass(self, rows: Rows) -> None:
        self._run(
            rows, missing=True, of_hidden=rows.total, of_weight=self.of_weight, of_bias=self.of_bias
        )

    def _run(
        self,
        rows: Rows,
        sum_exp: Tensor | None = None,
        read: bool = False,
        missing: bool = False,
        of_hidden: Tensor | None = None,
        of_weight: Tensor | None = None,
        of_bias: Tensor | None = None,
    ) -> None:
        """A pass; if ``read``, the second one, which reads what the first one kept."""
        kept = rows.memory if rows.kept else None
        missing_at = rows.missing if read or missing else None
        dtype = self.linear.dtype if of_weight is None else of_weight.dtype
        made = kernels().CrossEntropyPass(
            rows.ordered.data_ptr(), rows.order.data_ptr(), rows.shift.data_ptr(),
            address(sum_exp), rows.f_target.data_ptr(), rows.e_target.data_ptr(),
            rows.factor.data_ptr(), address(missing_at), address(kept),
            self._first_kept(rows.kept), read, address(of_hidden), rows.scaled.data_ptr(),
            address(of_weight), DTYPES[dtype], rows.number > 0, address(of_bias),
        )  # fmt: skip
        kernels().head_cross_entropy(self.head.of(rows.hidden), made)
