"""Score entropy of a linear head: torch's products, and a C++ kernel in place on every block."""

import torch
from torch import Tensor

from sedd_fast.backends.blocked_head import Block, Kernel, losses_and_gradients
from sedd_fast.backends.cpp.head_block import Rows, add_block
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) losses: one product of the touched rows."""
    return losses_and_gradients(linear.for_products(), entropy, None, NeedsGrad(), KERNEL)[0]


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and gradients of ``(grad_scale * loss).sum()``: three products."""
    return losses_and_gradients(linear.for_products(), entropy, grad_scale, needs, KERNEL)


def _run(block: Block, rows: EntropyRows) -> Tensor | None:
    """Add a block to the sums of its rows; those that overflow float32 again, in float64."""
    columns = None if block.gradient is None else torch.zeros_like(block.bias)
    overflowed = add_block(block, rows, columns)
    if overflowed is not None:
        _repeat(block, rows, overflowed.nonzero().squeeze(-1))
        if block.gradient is not None:
            return block.gradient.sum(0, dtype=block.bias.dtype)
    return columns


def _repeat(block: Block, rows: EntropyRows, which: Tensor) -> None:
    """Some rows of a block, given by index, once more and exactly."""
    sums, hidden = rows.sums.index_select(1, which), block.hidden[which]
    factors = None if rows.gradient is None else tuple(term[which] for term in rows.gradient)
    part = Rows(rows.x_t[which], sums[0], rows.x_0[which], sums[1], sums[2], factors)
    scores, gradient = hidden.new_empty(len(which), len(block.weight)), block.gradient
    columns = None if gradient is None else torch.zeros_like(block.bias)
    if gradient is not None:
        gradient = scores if gradient.dtype == scores.dtype else gradient[which]
    again = block._replace(hidden=hidden, scores=scores, gradient=gradient)
    add_block(again, part, columns, exact=True)
    rows.sums[:, which] = sums
    if block.gradient is not None and gradient is not None:
        block.gradient[which] = gradient


def in_huge_pages(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory, in pages of 2 MiB where the system has them."""
    memory = torch.empty(shape, dtype=dtype)
    kernels().ask_for_huge_pages(memory.data_ptr(), memory.nbytes)
    return memory


KERNEL = Kernel(_run, empty=in_huge_pages)
