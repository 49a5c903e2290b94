"""The C++ kernel on one block of a linear head's output: sums of its rows, and its gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.compiled import DTYPES, address
from sedd_fast.backends.cpp.module import kernels


class Rows(NamedTuple):
    """What a block adds to the sums of its rows, and what it needs to know for that.

    Attributes:
        x_t: (R,) int64, the state that is no part of a sum.
        sum_exp: (R,) float64 += the sum of exp(f).
        x_0: (R,) int64, the clean tokens, or None.
        sum_log, f_x_0: (R,) float64 += the sum of f; f at x_0. None where not wanted.
        gradient: (R,) float64 a, b, c of the gradient a * exp(f) - b - c * [y == x_0].
    """

    x_t: Tensor
    sum_exp: Tensor
    x_0: Tensor | None = None
    sum_log: Tensor | None = None
    f_x_0: Tensor | None = None
    gradient: tuple[Tensor | None, ...] = (None, None, None)


class Out(NamedTuple):
    """Where the gradient (R, n) goes, and its sums over the rows (n,), float32 or float64."""

    gradient: Tensor
    columns: Tensor


def add_block(
    scores: Tensor,
    bias: Tensor,
    first: int,
    rows: Rows,
    out: Out | None = None,
    exact: bool = False,
) -> Tensor | None:
    """Add the scores f = scores + bias, (R, n) contiguous, of the states from ``first``.

    Args:
        bias: (n,) float32 or float64.
        exact: in float64; such a row cannot overflow.

    Returns:
        (R,) bool, True where a row overflowed float32 and added nothing; None if none did. With an
        overflow ``out`` holds nothing of use.
    """
    overflowed = torch.empty(len(scores), dtype=torch.bool)
    gradient = columns = None
    if out is not None:
        gradient, columns = out
    separate = gradient is not None and gradient.dtype != scores.dtype
    block = kernels().HeadBlock(
        scores.data_ptr(), DTYPES[scores.dtype], *scores.shape, scores.stride(0), first,
        bias.data_ptr(), address(gradient), separate, address(columns),
    )  # fmt: skip
    tensors = (rows.x_t, rows.x_0, *rows.gradient, rows.sum_exp, rows.sum_log, rows.f_x_0)
    made = kernels().HeadRows(*map(address, (*tensors, overflowed)))
    found = kernels().linear_score_entropy(block, made, exact, torch.get_num_threads())
    return overflowed if found else None
