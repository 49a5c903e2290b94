"""Score entropy of a linear head: torch's products, and a C++ kernel in place on every block."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import blocked_head
from sedd_fast.backends.blocked_head import Block, Kernel
from sedd_fast.backends.cpp.head_block import Out, Rows, add_block
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) losses: one product of the touched rows."""
    return blocked_head.losses(linear, entropy, KERNEL)


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and gradients of ``(grad_scale * loss).sum()``: three products."""
    return blocked_head.losses_and_gradients(linear, entropy, grad_scale, needs, KERNEL)


def _run(block: Block, rows: EntropyRows) -> Tensor | None:
    """Add a block to the sums of its rows; those that overflow float32 again, in float64."""
    assert block.scores is not None
    torch.mm(block.hidden, block.weight.T, out=block.scores)
    out = None
    if block.gradient is not None:
        out = Out(block.gradient, torch.zeros_like(block.bias))
    overflowed = add_block(block.scores, block.bias, block.first, _rows(rows), out)
    if overflowed is not None:
        _repeat(block, rows, overflowed.nonzero().squeeze(-1), out)
        if out is not None:
            return out.gradient.sum(0, dtype=out.columns.dtype)
    return None if out is None else out.columns


def _repeat(block: Block, rows: EntropyRows, which: Tensor, out: Out | None) -> None:
    """Some rows of a block, given by index, once more and exactly."""
    part, scores = rows.part(which), torch.mm(block.hidden[which], block.weight.T)
    again = None
    if out is not None:
        separate = out.gradient.dtype != scores.dtype
        again = Out(out.gradient[which] if separate else scores, out.columns)
    add_block(scores, block.bias, block.first, _rows(part), again, exact=True)
    rows.take(which, part)
    if out is not None and again is not None:
        out.gradient[which] = again.gradient


def _rows(rows: EntropyRows) -> Rows:
    gradient = rows.gradient or (None, None, None)
    return Rows(rows.x_t, rows.sum_exp, rows.x_0, rows.sum_log, rows.f_x_0, gradient)


def _in_huge_pages(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    memory = torch.empty(shape, dtype=dtype)
    kernels().ask_for_huge_pages(memory.data_ptr(), memory.nbytes)
    return memory


KERNEL = Kernel(_run, empty=_in_huge_pages)
