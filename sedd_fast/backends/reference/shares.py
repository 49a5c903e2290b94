"""Temperature and top-p in plain torch: other shares of the states, of the same sum.

Given scores s_y of the states that a position may jump to, with sum S,

    temperature T:  s'_y = S * s_y^(1/T) / sum_z s_z^(1/T)
    top-p:          s'_y = S * s_y [y kept] / sum_z s_z [z kept],

kept being the states of the largest scores, as few as have shares that reach p, and all that equal
the least of them. The temperature goes first.
"""

import torch
from torch import Tensor


def reshaped(log_score: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log scores (..., dim) with the new shares; -inf for what is left out, as it may be before.

    A row without a finite sum stays as it is.
    """
    total = log_score.logsumexp(-1, keepdim=True)
    shares = _log_powers(_kept(log_score, temperature, top_p), temperature).log_softmax(-1)
    return torch.where(torch.isfinite(total), total + shares, log_score)


def reshaped_exp(log_score: Tensor, shift: Tensor, temperature: float, top_p: float) -> Tensor:
    """exp(reshaped(log_score) - shift) of float64 scores; shift (..., 1): about the largest.

    Where the shares do not change, the result is exactly exp(log_score - shift).
    """
    s = (log_score - shift).exp()
    total = s.sum(-1, keepdim=True)
    powers = _log_powers(_kept(log_score, temperature, top_p), temperature).exp()
    changed = powers * (total / powers.sum(-1, keepdim=True))
    return torch.where((total > 0) & torch.isfinite(total), changed, s)


def _log_powers(log_score: Tensor, temperature: float) -> Tensor:
    """ln of s_y^(1/T), of which the largest is 1: no temperature is too low then."""
    return (log_score - log_score.amax(-1, keepdim=True)) / temperature


def _kept(log_score: Tensor, temperature: float, p: float) -> Tensor:
    """Log scores, -inf below the least one kept."""
    if p >= 1:
        return log_score
    ordered = log_score.sort(dim=-1, descending=True).values
    running = _log_powers(ordered.double(), temperature).exp().cumsum(-1)
    short = (running < p * running[..., -1:]).sum(-1, keepdim=True)
    # A score decides, since shares of unequal ones may round alike.
    least = ordered.gather(-1, short.clamp(max=ordered.shape[-1] - 1))
    return log_score.masked_fill(log_score < least, -torch.inf)
