"""Score entropy of a linear head in plain torch: all of its output, then its formulas."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import Entropy, Reverse
from sedd_fast.backends.reference.rows import wide
from sedd_fast.backends.reference.score_entropy import score_entropy, score_entropy_backward


def linear_score_entropy(linear: Linear, entropy: Entropy) -> Tensor:
    """(B, L) losses, 0 where no row is read."""
    where = read(linear, entropy)
    return score_entropy(outputs(linear, where), _only(entropy, where))


def linear_score_entropy_with_grad(
    linear: Linear, entropy: Entropy, lift: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and gradients of ``(lift * loss).sum()``: the chain rule through the head."""
    where = read(linear, entropy)
    scores, entropy = outputs(linear, where), _only(entropy, where)
    loss = score_entropy(scores, entropy)
    lifts = torch.as_tensor(lift, dtype=torch.float64, device=loss.device).expand(loss.shape)
    g = score_entropy_backward(lifts, scores, entropy).flatten(0, 1)  # (B * L, dim)
    h = wide(_hidden(linear, where).flatten(0, 1))
    w = wide(linear.weight.to(linear.dtype))
    return loss, Gradients.of(
        linear,
        (g @ w).view(linear.hidden.shape) if needs.hidden else None,
        g.T @ h if needs.weight else None,
        g.sum(0) if needs.bias else None,
    )


def read(linear: Linear, inputs: Entropy | Reverse) -> Tensor:
    """(B, L) bool: the positions whose outputs count, touched by noise and, if listed, listed."""
    where = inputs.touched()
    if linear.rows is None:
        return where
    listed = where.new_zeros(where.numel() + 1)  # the last takes what stands for no position
    listed[linear.rows] = True
    return where & listed[:-1].view(where.shape)


def outputs(linear: Linear, where: Tensor) -> Tensor:
    """(B, L, dim) float32 or wider; hidden states are taken to be 0 but at ``where``."""
    bias = None if linear.bias is None else linear.bias.to(linear.dtype)
    w = linear.weight.to(linear.dtype)
    return wide(torch.nn.functional.linear(_hidden(linear, where), w, bias))


def _hidden(linear: Linear, where: Tensor) -> Tensor:
    """(B, L, H); what is not read is 0, so that a NaN there stays out of every product."""
    return torch.where(where[..., None], linear.hidden, 0).to(linear.dtype)


def _only(entropy: Entropy, where: Tensor) -> Entropy:
    """With no weight elsewhere."""
    weight = 1.0 if entropy.row_weight is None else entropy.row_weight
    return replace(entropy, row_weight=torch.where(where, weight, 0).double())
