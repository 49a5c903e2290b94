"""Score entropy of a linear head on a GPU: cuBLAS products, and a kernel in place on every block.

How many rows were touched must be known to the host: where ``linear.rows`` does not tell, it is
asked, and the GPU waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import blocked_head, values
from sedd_fast.backends.blocked_head import Block
from sedd_fast.backends.gpu import launching
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, Needs
from sedd_fast.backends.inputs import Entropy


def linear_score_entropy(linear: Linear, entropy: Entropy) -> Tensor:
    """(B, L) float32 losses: one product of the touched rows."""
    values.check(entropy)
    loss = blocked_head.losses(linear, entropy, Blocks())
    return loss.view(linear.hidden.shape[:2]).float()


def linear_score_entropy_with_grad(
    linear: Linear, entropy: Entropy, lift: Tensor | float, needs: Needs
) -> tuple[Tensor, Gradients]:
    """(B, L) float32 losses, and gradients of ``(lift * loss).sum()``: three products."""
    values.check(entropy)
    loss, gradients = blocked_head.losses_and_gradients(linear, entropy, lift, needs, Blocks())
    return loss.view(linear.hidden.shape[:2]).float(), gradients


class Blocks:
    """The kernel of one run over the vocabulary."""

    in_place = True

    def beside(self, dtype: torch.dtype, gradient: bool) -> float:
        """Nothing."""
        return 0.0

    def empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """From torch's caching allocator."""
        return torch.empty(shape, dtype=dtype, device=like.device)

    def visit(self, block: Block, rows: EntropyRows) -> Tensor | None:
        """Add a block to the sums of its rows, which the kernel keeps times a and the weight."""
        import triton

        from sedd_fast.kernels import linear_score_entropy as kernel

        if block.first == 0:
            self._coefficients = coefficients(rows)
            self._sum = torch.zeros_like(rows.sum_exp)
        gradient = None if rows.gradient is None else block.gradient
        with launching("linear_score_entropy", block.scores, triton.TritonError):
            kernel.launch(
                block.product(),
                block.bias,
                gradient,
                (rows.x_t, rows.x_0),
                self._coefficients,
                (self._sum, rows.sum_log, rows.f_x_0),
                block.first,
            )
        a = scale(rows)
        rows.sum_exp = torch.where(a > 0, self._sum / a, 0)
        return None if gradient is None else gradient.sum(0, dtype=block.bias.dtype)


def coefficients(rows: EntropyRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(R,) float32: ln a, the gradient's factor of a * exp(f), and its subtrahends."""
    a = scale(rows)  # 0 where the row has no loss: ln 0, and nothing is added
    log_a = a.log().float()
    if rows.gradient is None:
        return (log_a,) * 4
    ga, gb, gc = rows.gradient
    return log_a, torch.where(a > 0, ga / a, 0).float(), gb.float(), gc.float()


def scale(rows: EntropyRows) -> Tensor:
    """(R,) float64, what exp(f) is multiplied by before it is rounded to float32, 0 in bad rows.

    With the weight in it, that overflows only where the weighted loss does.
    """
    return torch.where(rows.valid, rows.terms.a * rows.weight.abs(), 0)
