"""A categorical draw by the inverse of the cumulative weights."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_cdf(running: Tensor, u: Tensor) -> Tensor:
    """(...) int64: the first index at which the running sums (..., n) of weights pass the share u
    (...) of their total.
    """
    total = running[..., -1:].contiguous()
    index = torch.searchsorted(running, u[..., None] * total, right=True)
    # u * total may round up to the total itself: the last that has weight then.
    last = torch.searchsorted(running, total)
    return torch.minimum(index, last).squeeze(-1)
