"""Noise schedules: how much noise sigma(t) a sequence has at time t in [0, 1], and how fast.

A schedule is called with times and gives ``(sigma, rate)``, total noise and its derivative
sigma'(t). Training weights a position by the rate; a sampler steps along sigma.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), appendix C.1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.names import NOISES, NoiseKind
from sedd_fast.ops._arguments import check_choice


@dataclass(frozen=True)
class Noise:
    """A schedule; use :class:`LogLinearNoise` or :class:`GeometricNoise`."""

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise at times t in [0, 1]: the shape of t, float64 for float64, else float32."""
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        """The derivative of :meth:`sigma` at t, in the same shape and dtype."""
        raise NotImplementedError

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(sigma(t), sigma'(t))``.

        Raises:
            TypeError: t is not a floating-point tensor.
        """
        t = check_times(t)
        return self.sigma(t), self.rate(t)


def trained_range(noise: Noise, eps: float) -> tuple[float, float]:
    """The noise levels at times eps and 1, between which a network is trained."""
    low, high = noise.sigma(torch.tensor([eps, 1.0], dtype=torch.float64)).tolist()
    return low, high


def check_times(t: Tensor) -> Tensor:
    """Times as float32, or float64 where they are that: 1 - t of 16-bit times is mostly rounding.

    Raises:
        TypeError: t is not a floating-point tensor.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point():
        got = str(t.dtype) if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"t must be a floating-point tensor of times in [0, 1], got {got}")
    return at_least_fp32(t)


@dataclass(frozen=True)
class LogLinearNoise(Noise):
    """sigma(t) = -ln(1 - (1 - eps) t): the masked fraction 1 - exp(-sigma) grows linearly.

    Args:
        eps: what is left unmasked at t = 1, in (0, 1).

    Raises:
        ValueError: eps outside (0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie in (0, 1), got {self.eps}; the usual value is 1e-3")

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.eps) * at_least_fp32(t))

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) / (1 - (1 - self.eps) * at_least_fp32(t))


@dataclass(frozen=True)
class GeometricNoise(Noise):
    """sigma(t) = sigma_min^(1 - t) * sigma_max^t.

    Args:
        sigma_min: total noise at t = 0, positive.
        sigma_max: total noise at t = 1, above ``sigma_min``. The defaults are the original's;
            its experiments use (1e-4, 20).

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "0 < sigma_min < sigma_max is needed, got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def sigma(self, t: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + (high - low) * at_least_fp32(t))

    def rate(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


def make_noise(
    kind: NoiseKind, *, eps: float = 1e-3, sigma_min: float = 1e-4, sigma_max: float = 20.0
) -> Noise:
    """The schedule of that name: "loglinear" (reads eps) or "geometric" (reads the sigmas).

    Raises:
        ValueError: another name.
    """
    check_choice("noise", kind, NOISES)
    return LogLinearNoise(eps) if kind == "loglinear" else GeometricNoise(sigma_min, sigma_max)
