"""Score entropy of a linear head: torch's products, and a C++ kernel in place on every block."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sedd_fast.backends import blocked_head, values
from sedd_fast.backends.blocked_head import Block
from sedd_fast.backends.cpp.module import DTYPES, kernels
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import Entropy


def linear_score_entropy(linear: Linear, entropy: Entropy) -> Tensor:
    """(B, L) losses: one product of the touched rows."""
    values.check(entropy)
    return _public(blocked_head.losses(linear, entropy, Blocks()), linear)


def linear_score_entropy_with_grad(
    linear: Linear, entropy: Entropy, lift: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and gradients of ``(lift * loss).sum()``: three products."""
    values.check(entropy)
    loss, gradients = blocked_head.losses_and_gradients(linear, entropy, lift, needs, Blocks())
    return _public(loss, linear), gradients


def _public(loss: Tensor, linear: Linear) -> Tensor:
    """In shape and dtype as promised."""
    loss = loss.view(linear.hidden.shape[:2])
    return loss if linear.dtype == torch.float64 else loss.float()


class Blocks:
    """The kernel of one run over the vocabulary."""

    in_place = True

    def beside(self, dtype: torch.dtype, gradient: bool) -> float:
        """Nothing."""
        return 0.0

    def empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory in large pages."""
        memory = torch.empty(shape, dtype=dtype)
        kernels().ask_for_huge_pages(memory.data_ptr(), memory.nbytes)
        return memory

    def visit(self, block: Block, rows: EntropyRows) -> Tensor | None:
        """Add a block to the sums of its rows; those that overflow float32 again, in double."""
        block.product()
        columns = None if rows.gradient is None else torch.zeros_like(block.bias)
        overflowed = _visit(block, rows, columns, exact=False)
        if overflowed is None:
            return columns
        which = overflowed.nonzero().squeeze(-1)
        part = rows.part(which)
        wide = None if block.wide is None else block.wide[which]
        exact = replace(block, scores=block.again(which), wide=wide)
        _visit(exact, part, columns, exact=True)
        rows.take(which, part)
        if columns is None:
            return None
        block.gradient[which] = exact.gradient
        return block.gradient.sum(0, dtype=columns.dtype)


def _visit(block: Block, rows: EntropyRows, columns: Tensor | None, exact: bool) -> Tensor | None:
    """(R,) bool, True where a row overflowed; None if none did."""
    gradient = rows.gradient or (rows.sum_exp,) * 3  # unread without one
    of_rows = (rows.x_t, rows.x_0, *gradient, rows.sum_exp, rows.sum_log, rows.f_x_0)
    into = (0, False, 0)
    if columns is not None:
        into = (block.gradient.data_ptr(), block.wide is not None, columns.data_ptr())
    return _add(block.scores, block.bias, block.first, into, of_rows, exact)


def block_sums(scores: Tensor, bias: Tensor, first: int, x_t: Tensor, sums: Tensor) -> None:
    """Add to ``sums`` (R,) float64 those of exp(scores + bias) over a block's states but x_t (R,).

    NaN where float32 overflows. Scores (R, n) contiguous, bias (n,) wide; ``first`` is the state of
    column 0.
    """
    nowhere, unread = torch.full_like(x_t, -1), torch.empty_like(sums)
    of_rows = (x_t, nowhere, unread, unread, unread, sums, unread, unread)
    overflowed = _add(scores, bias, first, (0, False, 0), of_rows, exact=False)
    if overflowed is not None:
        sums[overflowed] = torch.nan


def _add(
    scores: Tensor,
    bias: Tensor,
    first: int,
    into: tuple[int, bool, int],
    of_rows: tuple[Tensor, ...],
    exact: bool,
) -> Tensor | None:
    """The kernel on one block, its arguments as HeadBlock and HeadRows have them.

    ``into``: addresses of the gradient and of its sums over the rows, 0 for none, and in between
    whether the gradient is wide. Returns what `_visit` does.
    """
    gradient, wide, columns = into
    overflowed = torch.empty(len(scores), dtype=torch.bool)
    block = kernels().HeadBlock(
        scores.data_ptr(), DTYPES[scores.dtype], *scores.shape, scores.stride(0), first,
        bias.data_ptr(), gradient, wide, columns,
    )  # fmt: skip
    rows = kernels().HeadRows(*(tensor.data_ptr() for tensor in (*of_rows, overflowed)))
    found = kernels().linear_score_entropy(block, rows, exact, torch.get_num_threads())
    return overflowed if found else None
