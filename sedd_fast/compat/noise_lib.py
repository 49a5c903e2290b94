"""noise_lib: the noise schedules as modules, to be moved and wrapped in DDP."""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.process import noise as schedules

#: ``sigma, rate = noise(t)``: a :class:`Noise`, wrapped or not.
NoiseFn = Callable[[Tensor], tuple[Tensor, Tensor]]


def get_noise(config: Any) -> "Noise":
    """The schedule of ``config.noise``: ``type`` "geometric" (sigma_min, sigma_max) or "loglinear".

    ``config.noise.eps`` is read where it is set; the original's 1e-3 otherwise.
    """
    kind = config.noise.type
    if kind == "geometric":
        return GeometricNoise(config.noise.sigma_min, config.noise.sigma_max)
    if kind == "loglinear":
        return LogLinearNoise(getattr(config.noise, "eps", None) or 1e-3)
    raise ValueError(f"noise.type must be 'geometric' or 'loglinear', got {kind!r}")


class Noise(abc.ABC, nn.Module):
    """A schedule: ``sigma, rate = noise(t)``."""

    def __init__(self) -> None:
        super().__init__()
        # Nothing to learn, but DistributedDataParallel refuses a module without parameters.
        self.empty = nn.Parameter(torch.tensor(0.0))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Total noise and its rate at times t in [0, 1], each in the shape of t."""
        return self.total_noise(t), self.rate_noise(t)

    @abc.abstractmethod
    def rate_noise(self, t: Tensor) -> Tensor:
        """The derivative of the total noise."""

    @abc.abstractmethod
    def total_noise(self, t: Tensor) -> Tensor:
        """Total noise sigma(t)."""


class _Schedule(Noise):
    def __init__(self, schedule: schedules.Noise) -> None:
        super().__init__()
        self.schedule = schedule

    def rate_noise(self, t: Tensor) -> Tensor:
        return self.schedule.rate(t)

    def total_noise(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(t)

    def extra_repr(self) -> str:
        return repr(self.schedule)


class GeometricNoise(_Schedule):
    """sigma(t) = sigma_min^(1 - t) * sigma_max^t; see :class:`sedd_fast.GeometricNoise`."""

    def __init__(
        self, sigma_min: float = 1e-3, sigma_max: float = 1.0, learnable: bool = False
    ) -> None:
        if learnable:
            raise ValueError(
                "learnable=True is not supported: the fused loss has no gradient with respect to "
                "sigma; leave it False"
            )
        super().__init__(schedules.GeometricNoise(float(sigma_min), float(sigma_max)))


class LogLinearNoise(_Schedule):
    """sigma(t) = -ln(1 - (1 - eps) t); see :class:`sedd_fast.LogLinearNoise`."""

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__(schedules.LogLinearNoise(float(eps)))
        self.eps = eps
