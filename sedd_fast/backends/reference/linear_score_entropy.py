"""Score entropy of a linear head in plain torch: all of its output, then its formulas."""

from dataclasses import replace

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs
from sedd_fast.backends.reference.score_entropy import score_entropy, score_entropy_backward


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) losses, 0 where no row is read."""
    where = read(linear, entropy)
    return score_entropy(outputs(linear, _formed(where, entropy)), _only(entropy, where))


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and gradients of ``(grad_scale * loss).sum()``, by the chain rule."""
    where = read(linear, entropy)
    formed = _formed(where, entropy)
    scores, entropy = outputs(linear, formed), _only(entropy, where)
    loss = score_entropy(scores, entropy)
    grad_loss = torch.as_tensor(grad_scale, dtype=torch.float64, device=loss.device)
    g = score_entropy_backward(grad_loss.expand(loss.shape), scores, entropy)
    g = g.flatten(0, 1)  # (B * L, dim)
    h = at_least_fp32(_hidden(linear, formed).flatten(0, 1))
    w = at_least_fp32(linear.weight.to(linear.dtype))
    return loss, Gradients.of(
        linear,
        (g @ w).view(linear.hidden.shape) if needs.hidden else None,
        g.T @ h if needs.weight else None,
        g.sum(0) if needs.bias else None,
    )


def read(linear: Linear, inputs: EntropyInputs | ReverseInputs) -> Tensor:
    """(B, L) bool: the positions whose outputs count, touched by noise and, if listed, listed."""
    where = inputs.touched()
    if linear.rows is None:
        return where
    listed = where.new_zeros(where.numel() + 1)  # the last takes what stands for no position
    listed.index_fill_(0, linear.rows, True)
    return where & listed[:-1].view(where.shape)


def _formed(where: Tensor, entropy: EntropyInputs) -> Tensor:
    """Where outputs are formed; the loss of a position of no finite weight is NaN without."""
    return where if entropy.row_weight is None else where & entropy.row_weight.isfinite()


def outputs(linear: Linear, where: Tensor) -> Tensor:
    """(B, L, dim) float32 or float64; hidden states are taken to be 0 but at ``where``."""
    bias = None if linear.bias is None else linear.bias.to(linear.dtype)
    w = linear.weight.to(linear.dtype)
    return at_least_fp32(torch.nn.functional.linear(_hidden(linear, where), w, bias))


def _hidden(linear: Linear, where: Tensor) -> Tensor:
    """(B, L, H); what is not read is 0, so that a NaN there stays out of every product."""
    return torch.where(where[..., None], linear.hidden, 0).to(linear.dtype)


def _only(entropy: EntropyInputs, where: Tensor) -> EntropyInputs:
    """With no weight elsewhere."""
    weight = 1.0 if entropy.row_weight is None else entropy.row_weight
    return replace(entropy, row_weight=torch.where(where, weight, 0).double())
