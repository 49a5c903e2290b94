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
    kept = log_score
    if top_p < 1:
        kept = log_score.masked_fill(log_score < _least(log_score, temperature, top_p), -torch.inf)
    return torch.where(torch.isfinite(total), total + _log_shares(kept, temperature), log_score)


def _log_shares(log_score: Tensor, temperature: float) -> Tensor:
    largest = log_score.amax(-1, keepdim=True)  # taken off: no temperature is too low then
    return ((log_score - largest) / temperature).log_softmax(-1)


def _least(log_score: Tensor, temperature: float, p: float) -> Tensor:
    """(..., 1): the least score kept; a score, since shares of unequal ones may round alike."""
    ordered = log_score.sort(dim=-1, descending=True).values
    reached = _log_shares(ordered.double(), temperature).exp().cumsum(-1)
    short = (reached < p).sum(-1, keepdim=True)
    return ordered.gather(-1, short.clamp(max=ordered.shape[-1] - 1))
