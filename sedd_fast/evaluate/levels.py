"""Where a bound's integral over the noise is sampled: at levels sigma, whatever the schedule.

    integral of E[score entropy] sigma'(t) dt = integral of E[score entropy] d sigma

so the schedule sets only the limits. About L m positions of a sequence are noised, with m = 1 -
exp(-sigma), and where sigma is small each has a score entropy near 1 / sigma. The times of a
log-linear schedule seldom meet these levels, at which a single position weighs most: the variance
is large, and few samples do not show it. Here half of the levels are uniform in m, where the
integrand of the absorbing graph is flat, and half in ln sigma, where a position's weight is
bounded. Their density in sigma is

    q = exp(-sigma) / (2 (m_1 - m_0)) + 1 / (2 sigma ln(sigma_1 / sigma_0))

A sample counts 1 / q: at most twice what it would count under either half alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BISECTIONS = 55


@dataclass(frozen=True)
class Levels:
    """The levels from sigma_0, ``low``, to sigma_1, ``high``; 0 < low < high."""

    low: float
    high: float

    def at(self, quantile: Tensor) -> Tensor:
        """The levels at quantiles of q: (R,) in [0, 1] -> (R,), both float64; by bisection."""
        low = torch.full_like(quantile, math.log(self.low))  # of ln sigma
        high = torch.full_like(quantile, math.log(self.high))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self._quantile(middle) < quantile
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low.exp()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / q at levels (R,) float64."""
        return 2 / (torch.exp(-sigma) / self._m + 1 / (sigma * self._log))

    def _quantile(self, log_sigma: Tensor) -> Tensor:
        m = math.exp(-self.low) - torch.exp(-log_sigma.exp())
        return (m / self._m + (log_sigma - math.log(self.low)) / self._log) / 2

    @property
    def _m(self) -> float:
        return math.exp(-self.low) - math.exp(-self.high)

    @property
    def _log(self) -> float:
        return math.log(self.high / self.low)
