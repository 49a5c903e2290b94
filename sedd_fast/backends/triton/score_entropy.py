"""score_entropy, its gradient, and both in one pass, as a Triton kernel."""

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import gradient_dtype
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.triton.launch import empty, launched


def score_entropy(log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L) float32 losses: one read of the touched rows."""
    loss = empty(entropy.x_t, torch.float32)
    _entropy(log_score, entropy, None, loss, None, 1.0)
    return loss


def score_entropy_backward(grad_loss: Tensor, log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L, dim) gradient: one read of the touched rows, one write."""
    grad = empty(log_score, log_score.dtype)
    _entropy(log_score, entropy, grad_loss.contiguous(), None, grad, 1.0)
    return grad


def score_entropy_with_grad(
    log_score: Tensor, entropy: EntropyInputs, scale: float
) -> tuple[Tensor, Tensor]:
    """Losses and gradient of ``scale * loss.sum()``: one read, one write."""
    loss = empty(entropy.x_t, torch.float32)
    grad = empty(log_score, gradient_dtype(log_score.dtype))
    _entropy(log_score, entropy, None, loss, grad, scale)
    return loss, grad


def _entropy(
    log_score: Tensor,
    entropy: EntropyInputs,
    upstream: Tensor | None,
    loss: Tensor | None,
    grad: Tensor | None,
    scale: float,
) -> None:
    from sedd_fast.kernels import score_entropy as kernel

    entropy = entropy.contiguous(keep_fp32=True)
    arguments = log_score, entropy, upstream, loss, grad, scale
    launched("score_entropy", log_score, kernel.launch, *arguments)
