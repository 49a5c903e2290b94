"""row_sums and its gradient in plain torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.inputs import RowSumInputs
from sedd_fast.backends.reference.rows import other_states

#: f of every term, and its derivative.
TERMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "affine": (lambda z: z, torch.ones_like),
    "square": (torch.square, lambda z: 2 * z),
    "log": (torch.log, torch.reciprocal),
}


def row_sums(log_score: Tensor, sums: RowSumInputs) -> tuple[Tensor, Tensor]:
    """Sum over y != x_t of f(a exp(l_y) + b), and l at x_0: (B, L) float64, 0 where a is 0."""
    argument, _ = _arguments(log_score, sums)
    read = _read(sums, log_score.shape[-1])
    total = torch.where(read, TERMS[sums.term][0](argument), 0).sum(-1)
    at_x_0 = sums.x_0[..., None]
    log_x_0 = torch.where(read, at_least_fp32(log_score).double(), 0).gather(-1, at_x_0).squeeze(-1)
    total, log_x_0 = (torch.where(sums.a.isfinite(), x, torch.nan) for x in (total, log_x_0))
    return total.contiguous(), log_x_0.contiguous()


def row_sums_backward(
    grad_total: Tensor, grad_log_x_0: Tensor, log_score: Tensor, sums: RowSumInputs
) -> tuple[Tensor, Tensor]:
    """Gradients in log_score, (B, L, dim) in its dtype, and in b, (B, L) float64."""
    argument, moving = _arguments(log_score, sums)
    read = _read(sums, log_score.shape[-1]) & sums.a.isfinite()[..., None]
    scale = torch.where(read, grad_total[..., None], 0)
    slope = torch.where(scale != 0, scale * TERMS[sums.term][1](argument), 0)
    gradient = torch.where(scale != 0, slope * moving, 0)
    at_x_0 = torch.nn.functional.one_hot(sums.x_0, log_score.shape[-1]).bool() & read
    gradient = gradient + torch.where(at_x_0, grad_log_x_0[..., None], 0)
    return gradient.to(log_score.dtype).contiguous(), slope.sum(-1).contiguous()


def _arguments(log_score: Tensor, sums: RowSumInputs) -> tuple[Tensor, Tensor]:
    """a exp(l) + b and a exp(l), (B, L, dim) float64."""
    moving = sums.a[..., None] * at_least_fp32(log_score).double().exp()
    return moving + sums.b[..., None], moving


def _read(sums: RowSumInputs, dim: int) -> Tensor:
    """(B, L, dim) bool: the states that count."""
    return other_states(sums.x_t, dim) & (sums.a != 0)[..., None]
