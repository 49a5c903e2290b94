"""row_sums and its gradient as a Triton kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.gpu import launching
from sedd_fast.backends.inputs import Sums


def row_sums(log_score: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """Sums and l at x_0, (B, L) float64: one read of the rows in which a is not 0."""
    values.check(sums)
    out = (_empty(sums.a), _empty(sums.a))
    _launch(log_score, sums, None, out)
    return out


def row_sums_backward(
    grad_total: Tensor, grad_log_x_0: Tensor, log_score: Tensor, sums: Sums
) -> tuple[Tensor, Tensor]:
    """Gradients in log_score and b: one read of the touched rows, one write."""
    upstream = tuple(g.to(torch.float64).contiguous() for g in (grad_total, grad_log_x_0))
    grad = torch.empty_like(log_score, memory_format=torch.contiguous_format)
    grad_b = _empty(sums.a)
    _launch(log_score, sums, upstream, (grad_b, grad))
    return grad, grad_b


def _empty(like: Tensor) -> Tensor:
    """(B, L) float64, contiguous."""
    return torch.empty_like(like, dtype=torch.float64, memory_format=torch.contiguous_format)


def _launch(
    log_score: Tensor, sums: Sums, upstream: tuple[Tensor, ...] | None, out: tuple[Tensor, Tensor]
) -> None:
    import triton

    from sedd_fast.kernels import row_sums as kernel

    sums = sums.contiguous()
    small = (sums.x_t, sums.x_0, sums.a, sums.b)
    with launching("row_sums", log_score, triton.TritonError):
        kernel.launch(log_score, small, upstream, out, sums.term, sums.vocab_size)
