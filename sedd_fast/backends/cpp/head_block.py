"""The C++ kernel on one block of a linear head's output: sums of its rows, and its gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.blocked_head import Block
from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.head import EntropyRows


class Rows(NamedTuple):
    """What a block adds to the sums of its rows; EntropyRows has the same attributes.

    Attributes:
        x_t: (R,) int64, the state that is no part of a sum.
        sum_exp: (R,) float64 += the sum of exp(f).
        x_0: (R,) int64, the clean tokens, or None.
        sum_log, f_x_0: (R,) float64 += the sum of f; f at x_0. None where not wanted.
        gradient: (R,) float64 a, b, c of the gradient a * exp(f) - b - c * [y == x_0], or None.
    """

    x_t: Tensor
    sum_exp: Tensor
    x_0: Tensor | None = None
    sum_log: Tensor | None = None
    f_x_0: Tensor | None = None
    gradient: tuple[Tensor, ...] | None = None


def add_block(
    block: Block, rows: Rows | EntropyRows, columns: Tensor | None = None, exact: bool = False
) -> Tensor | None:
    """Form the scores f = hidden @ weight.T + bias of a block, and add them to sums.

    Args:
        columns: (n,) float32 or float64 += the sums of the gradient over the rows; with a block
            that has memory for a gradient.
        exact: in float64; such a row cannot overflow.

    Returns:
        (R,) bool, True where a row overflowed float32 and added nothing; None if none did. With an
        overflow gradient and ``columns`` hold nothing of use.
    """
    scores, gradient = block.scores, block.gradient
    assert scores is not None
    torch.mm(block.hidden, block.weight.T, out=scores)
    overflowed = torch.empty(len(scores), dtype=torch.bool)
    separate = gradient is not None and gradient.dtype != scores.dtype
    made = kernels().HeadBlock(
        scores.data_ptr(), DTYPES[scores.dtype], *scores.shape, scores.stride(0), block.first,
        block.bias.data_ptr(), address(gradient), separate, address(columns),
    )  # fmt: skip
    factors = rows.gradient or (None, None, None)
    tensors = (rows.x_t, rows.x_0, *factors, rows.sum_exp, rows.sum_log, rows.f_x_0)
    sums = kernels().HeadRows(*map(address, (*tensors, overflowed)))
    found = kernels().linear_score_entropy(made, sums, exact, torch.get_num_threads())
    return overflowed if found else None
