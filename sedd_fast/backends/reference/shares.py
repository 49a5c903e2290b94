"""Temperature and top-p in plain torch: other shares of the states, of the same sum.

Given scores s_y of the states that a position may jump to, with sum S,

    temperature T:  s'_y = S * s_y^(1/T) / sum_z s_z^(1/T)
    top-p:          s'_y = S * s_y [y kept] / sum_z s_z [z kept],

kept being the states of the largest scores, as few as have shares that reach p, and all that equal
the least of them. The temperature goes first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reshaped(log_score: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log scores (..., dim) with the new shares; -inf for what is left out, as it may be before.

    A row without a finite sum stays as it is.
    """
    total = log_score.logsumexp(-1, keepdim=True)
    shares = (log_score / temperature).log_softmax(-1)
    if top_p < 1:
        shares = _nucleus(shares, top_p).log_softmax(-1)
    return torch.where(torch.isfinite(total), total + shares, log_score)


def _nucleus(log_shares: Tensor, p: float) -> Tensor:
    """-inf for the states that top-p leaves out."""
    ordered = log_shares.sort(dim=-1, descending=True).values
    short = (ordered.double().exp().cumsum(-1) < p).sum(-1, keepdim=True)
    least = ordered.gather(-1, short.clamp(max=ordered.shape[-1] - 1))
    return log_shares.masked_fill(log_shares < least, -torch.inf)
