"""row_sums and its gradient as a Triton kernel."""

import torch
from torch import Tensor

from sedd_fast.backends.inputs import RowSumInputs
from sedd_fast.backends.triton.launch import empty, launched


def row_sums(log_score: Tensor, sums: RowSumInputs) -> tuple[Tensor, Tensor]:
    """Sums and l at x_0, (B, L) float64: one read of the rows in which a is not 0."""
    out = (empty(sums.a, torch.float64), empty(sums.a, torch.float64))
    _launch(log_score, sums, None, out)
    return out


def row_sums_backward(
    grad_total: Tensor, grad_log_x_0: Tensor, log_score: Tensor, sums: RowSumInputs
) -> tuple[Tensor, Tensor]:
    """Gradients in log_score and b: one read of the touched rows, one write."""
    upstream = grad_total.double().contiguous(), grad_log_x_0.double().contiguous()
    grad = empty(log_score, log_score.dtype)
    grad_b = empty(sums.a, torch.float64)
    _launch(log_score, sums, upstream, (grad_b, grad))
    return grad, grad_b


def _launch(
    log_score: Tensor,
    sums: RowSumInputs,
    upstream: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor],
) -> None:
    from sedd_fast.kernels import row_sums as kernel

    sums = sums.contiguous()
    launched("row_sums", log_score, kernel.launch, log_score, sums, upstream, out)
