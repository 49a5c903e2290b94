"""Cross entropy of a linear head in two passes over blocks of states, or one where sums are known.

:mod:`.cross_entropy_head` says what a pass forms.
"""

import torch
from torch import Tensor

from sedd_fast.backends.cpp.cross_entropy_blocks import BlocksHead
from sedd_fast.backends.cpp.cross_entropy_head import CrossEntropyHead, for_cross_entropy
from sedd_fast.backends.cpp.cross_entropy_products import ProductsHead
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.softmax import CrossEntropyInputs

#: The log-sum-exp of rows that are none: at any bias their probabilities are 0. Exact in float32.
BEYOND = 2.0**127


def linear_cross_entropy(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor]:
    """(B, L) losses, and float64 logarithms of the rows' sums: one product."""
    head = _head(linear, entropy, NeedsGrad())
    for rows in head.chunks(head.rows_at_once()):
        head.first_pass(rows)
        head.finish(rows)
    return head.loss(), head.log_sum()


def linear_cross_entropy_with_grad(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and the gradients of their sum: three products, or up to four."""
    head = _head(linear, entropy, needs)
    for rows in head.chunks(*head.plan()):
        head.first_pass(rows)
        head.finish(rows)
        head.second_pass(rows)
    return head.loss(), head.gradients()


def linear_cross_entropy_backward(
    linear: Linear, entropy: CrossEntropyInputs, log_sum: Tensor, needs: NeedsGrad
) -> Gradients:
    """The gradients of the sum of the losses; with the logarithms of sums known, three products."""
    head = _head(linear, entropy, needs)
    known = torch.cat((log_sum.flatten(), log_sum.new_zeros(1)))
    for rows in head.chunks(head.rows_at_once()):
        log_sum = torch.where(rows.weight != 0, known[rows.to], BEYOND)
        rows.shift.copy_(log_sum.to(fp32_or_fp64(rows.hidden.dtype)))  # as the kernel rounds it
        rows.sum_exp.copy_((log_sum - rows.shift).exp())
        head.find_factors(rows)
        head.only_pass(rows)
        if rows.total is not None:
            rows.total.mul_(rows.factor.to(rows.total.dtype)[:, None])
    return head.gradients()


def _head(linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> CrossEntropyHead:
    linear = for_cross_entropy(linear)
    kind = BlocksHead if linear.dtype.itemsize == 2 else ProductsHead
    return kind(linear, entropy, needs)
