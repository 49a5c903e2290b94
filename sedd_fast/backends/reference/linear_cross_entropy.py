"""Weighted cross entropy of a linear head in plain torch: all outputs of the read rows at once."""

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32, fp32_or_fp64
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.softmax import CrossEntropyInputs, at_positions, outputs


def linear_cross_entropy(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor]:
    """(B, L) losses, and float64 logarithms of the rows' sums; 0 where no row is read."""
    rows, target, weight = read(linear, entropy)
    f = outputs(linear, rows, entropy)  # (R, dim)
    log_sum = f.double().logsumexp(-1)  # outputs of 1e4 leave a float32 one three digits
    nats = log_sum - f.gather(-1, target[:, None]).squeeze(-1) + entropy.z_loss * log_sum**2
    loss = at_positions(weight * nats, rows, linear.hidden.shape[:2])
    return loss.to(fp32_or_fp64(linear.dtype)), at_positions(log_sum, rows, loss.shape)


def linear_cross_entropy_with_grad(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and the gradients of their sum."""
    loss, log_sum = linear_cross_entropy(linear, entropy)
    return loss, linear_cross_entropy_backward(linear, entropy, log_sum, needs)


def linear_cross_entropy_backward(
    linear: Linear, entropy: CrossEntropyInputs, log_sum: Tensor, needs: NeedsGrad
) -> Gradients:
    """The gradients of the sum of the losses: f's is weight * ((1 + 2 z log_sum) p - [y = target]),
    times the softcap's slope 1 - (f / softcap)^2.
    """
    rows, target, weight = read(linear, entropy)
    f = outputs(linear, rows, entropy)  # (R, dim)
    log_sum = log_sum.flatten()[rows.clamp(min=0)]
    # An entry for no position has no sum: at a large bias 0 times exp(f) would be NaN.
    p = torch.where(rows[:, None] >= 0, (f - log_sum[:, None]).exp(), 0.0)
    g = weight[:, None] * (1 + 2 * entropy.z_loss * log_sum)[:, None] * p  # float64
    g.scatter_add_(-1, target[:, None], -weight[:, None])
    if entropy.softcap:
        finite = f.masked_fill(f == -torch.inf, 0)
        g = g * (1 - (finite / entropy.softcap) ** 2)
    h, w = at_least_fp32(linear.gathered(rows)), at_least_fp32(linear.weight.to(linear.dtype))
    g = g.to(h.dtype)
    of_hidden = at_positions(g @ w, rows, linear.hidden.shape[:2]) if needs.hidden else None
    of_weight, of_bias = (g.T @ h if needs.weight else None), (g.sum(0) if needs.bias else None)
    return Gradients.of(linear, of_hidden, of_weight, of_bias)


def read(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) positions, their targets and weights, float64.

    A position is -1 for none, also where a row is listed that has no weight.
    """
    rows = linear.read(entropy)
    at = rows.clamp(min=0)
    weight = torch.where(rows >= 0, entropy.row_weight.flatten()[at], 0.0)
    target = torch.where(weight != 0, entropy.target.flatten()[at], 0)
    return torch.where(weight != 0, rows, -1), target, weight
