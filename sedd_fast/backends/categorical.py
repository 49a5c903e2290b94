"""Categorical draws in plain torch: the inverse of the cumulative weights, in one place."""

import torch
from torch import Tensor

from sedd_fast.backends import values


def inverse_cdf(running: Tensor, u: Tensor) -> Tensor:
    """The first index at which running sums of weights pass the share u of their total.

    An index of weight 0 is never drawn.

    Args:
        running: (..., n) cumulative weights, not normalised, or (n,) for every u.
        u: (...) in [0, 1).

    Returns:
        (...) int64.
    """
    total = running[..., -1:].contiguous()
    index = torch.searchsorted(running, (u[..., None] * total).contiguous(), right=True)
    # u * total may round up to the total itself: the last that has weight then.
    last = torch.searchsorted(running, total)
    return torch.minimum(index, last).squeeze(-1)


def draw(weights: Tensor, u: Tensor) -> Tensor:
    """An index of each row of weights (..., n) for uniforms u (...): (...) int64.

    Raises:
        ValueError: on the CPU, a row whose weights are all zero, or of which one is not finite.
    """
    running = weights.double().cumsum(-1)
    total = running[..., -1]
    values.check_drawable((total > 0) & torch.isfinite(total))
    return inverse_cdf(running, u)


def pick(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of weights (R, n), the index at which their running sum, in float64, passes the
    share u (R,) of their sum, and what is left of u there, as a share of that weight.
    """
    running = weights.cumsum(1, dtype=torch.float64)
    index = inverse_cdf(running, u)[:, None]
    before = torch.where(index > 0, running.gather(1, (index - 1).clamp(min=0)), 0.0)
    share = (u[:, None] * running[:, -1:] - before) / weights.gather(1, index)
    return index.squeeze(1), share.squeeze(1).clamp(0, 1)
