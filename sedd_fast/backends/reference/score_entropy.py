"""score_entropy and its gradient in plain torch."""

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import head_coefficients
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.reference.rows import other_states


def score_entropy(log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L): row_weight * (a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k), y != x_t."""
    scores = log_score.double()  # or raw outputs, as head_coefficients takes them
    a, b, c, k = head_coefficients(entropy)
    others = other_states(entropy.x_t, scores.shape[-1])
    sum_exp = torch.where(others, scores.exp(), 0).sum(-1)  # (B, L)
    sum_log = torch.where(others, scores, 0).sum(-1)
    log_x_0 = scores.gather(-1, entropy.x_0[..., None]).squeeze(-1)
    # A coefficient of zero means that the term is absent, even where the score is infinite.
    large = k + torch.where(a > 0, a * sum_exp, 0)
    loss = large - torch.where(b > 0, b * sum_log, 0) - torch.where(c > 0, c * log_x_0, 0)
    loss = torch.where(large == torch.inf, large, loss)  # these terms outgrow the others
    if entropy.row_weight is not None:
        weighted = torch.where(entropy.row_weight.isfinite(), loss * entropy.row_weight, torch.nan)
        loss = torch.where(entropy.row_weight != 0, weighted, 0)
    return loss.to(fp32_or_fp64(log_score.dtype)).contiguous()


def score_entropy_backward(grad_loss: Tensor, log_score: Tensor, entropy: EntropyInputs) -> Tensor:
    """(B, L, dim) in the dtype of log_score: the gradient of (grad_loss * loss).sum()."""
    return _gradient(log_score, entropy, grad_loss.double()).to(log_score.dtype)


def score_entropy_with_grad(
    log_score: Tensor, entropy: EntropyInputs, scale: float
) -> tuple[Tensor, Tensor]:
    """The loss (B, L) and the gradient (B, L, dim) of ``scale * loss.sum()``.

    The gradient of float16 scores is float32: a loss scaler has yet to multiply it into range.
    """
    loss = score_entropy(log_score, entropy)
    upstream = torch.full_like(entropy.x_t, scale, dtype=torch.float64)
    gradient = _gradient(log_score, entropy, upstream)
    return loss, gradient.to(gradient_dtype(log_score.dtype))


def _gradient(log_score: Tensor, entropy: EntropyInputs, grad_loss: Tensor) -> Tensor:
    """grad_loss * row_weight * (a * exp(l_y) - b - c * [y == x_0]), 0 at x_t and at weight 0."""
    scores = log_score.double()
    weight = grad_loss if entropy.row_weight is None else grad_loss * entropy.row_weight
    a, b, c, _ = (value[..., None] for value in head_coefficients(entropy))
    at_x_0 = torch.nn.functional.one_hot(entropy.x_0, scores.shape[-1]).bool()
    gradient = weight[..., None] * (a * scores.exp() - b - torch.where(at_x_0, c, 0))
    read = entropy.touched() & (a.squeeze(-1) > 0) & (weight != 0)
    if entropy.row_weight is not None:
        read &= entropy.row_weight.isfinite()  # else the loss is NaN
    others = other_states(entropy.x_t, scores.shape[-1])
    return torch.where(others & read[..., None], gradient, 0).contiguous()
