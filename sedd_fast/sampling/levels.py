"""Noise levels, mask probabilities m = 1 - exp(-sigma), and times."""

import torch
from torch import Tensor

from sedd_fast.process.noise import Noise

_BISECTIONS = 55  # of [0, 1]: to the last digit of a float64


def mask_probability(sigma: Tensor) -> Tensor:
    """m of noise levels."""
    return -torch.expm1(-sigma)


def trained_range(noise: Noise, eps: float) -> tuple[float, float]:
    """The noise levels at times eps and 1, between which a network is trained."""
    low, high = noise.sigma(torch.tensor([eps, 1.0], dtype=torch.float64)).tolist()
    return low, high


def levels_of(share: Tensor, trained: tuple[float, float]) -> Tensor:
    """sigma at which a share of the positions is noised, within the trained range; float64."""
    return (-torch.log1p(-share.double())).clamp(*trained)


def times_of(sigma: Tensor, noise: Noise) -> Tensor:
    """The times of noise levels, by bisection: a schedule has only sigma(t), which rises."""
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = noise.sigma(middle) < sigma
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low
