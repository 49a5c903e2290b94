"""Noise levels, mask probabilities m = 1 - exp(-sigma), and times."""

import torch
from torch import Tensor

from sedd_fast.process.noise import Noise

_BISECTIONS = 55  # of [0, 1]: to the last digit of a float64


def mask_probability(sigma: Tensor) -> Tensor:
    """m of noise levels."""
    return -torch.expm1(-sigma)


def levels_of(share: Tensor, trained: tuple[float, float]) -> Tensor:
    """sigma at which a share of the positions is noised, within the trained range; float64."""
    return (-torch.log1p(-share.double())).clamp(*trained)


def time_of_share(share: Tensor, noise: Noise) -> float:
    """The time at which a share () of the positions is noised."""
    share = share.double().cpu()
    last = noise.sigma(torch.ones((), dtype=torch.float64))
    return float(times_of((-torch.log1p(-share)).minimum(last), noise))


def times_of(sigma: Tensor, noise: Noise) -> Tensor:
    """The times of noise levels, by bisection: a schedule has only sigma(t), which rises."""
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = noise.sigma(middle) < sigma
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low
