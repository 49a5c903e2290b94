"""Where a bound's integral over the noise is sampled: at levels sigma, whatever the schedule.

    integral of E[score entropy] sigma'(t) dt = integral of E[score entropy] d sigma

so the schedule sets only the limits. About L m positions of a sequence are noised, with m = 1 -
exp(-sigma), and where sigma is small each has a score entropy near 1 / sigma. The times of a
log-linear schedule seldom meet these levels, and there most samples have no noised position and the
few others weigh much: the variance is large, and few samples do not show it. So two things are
sampled by importance.

**The level** (:class:`Levels`). Half of the levels are uniform in m, where the integrand of the
absorbing graph is flat, and half in ln sigma, where the weight of a noised position is bounded.
Their density in sigma is

    q = exp(-sigma) / (2 (m_1 - m_0)) + 1 / (2 sigma ln(sigma_1 / sigma_0))

A sample counts 1 / q: at most twice what it would count under either half alone.

**Whether any position is noised** (:func:`noised`). None of L is with probability P = (1 - p)^L,
p the probability that a position is not x_0's. The mean over x_t is P times the loss at x_0 itself
plus 1 - P times the mean over the other x_t, and only the latter is sampled: where a network reads
levels with P above 1 %, it reads x_0 too. With the absorbing graph a sequence without masks has no
loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.process.graphs import Graph

_BISECTIONS = 55
_RARE = 0.01


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


def noised(
    x_0: Tensor, evaluated: Tensor, sigma: Tensor, graph: Graph, choice: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Noised sequences of levels sigma, those that are x_0 itself left out.

    Args:
        x_0: (R, L) int64.
        evaluated: (R, L) bool, the positions that are noised; a row has at least one.
        sigma: (R,) float64.
        choice: (R,) uniform numbers, which set the first noised position.
        u: (R, L, 2) uniform numbers: whether a later position is noised, and its token.

    Returns:
        x_t (R, L), and the probability P (R,) float64 of what is left out: 0 where P is below 1 %,
        and nothing is left out.
    """
    length, vocab, mask = evaluated.sum(1), graph.vocab_size, graph.mask_index
    p = -torch.expm1(-sigma) * ((vocab - 1) / vocab if mask is None else 1)
    log_stay = torch.log1p(-p)
    left_out = torch.exp(length * log_stay)
    left_out = torch.where(left_out > _RARE, left_out, 0.0)
    # By inverting P(first < j) = (1 - (1 - p)^j) / (1 - P).
    first = torch.floor(torch.log1p(-choice * (1 - left_out)) / log_stay)[:, None]
    # The place of a position among those that are noised; before all of them elsewhere.
    place = torch.where(evaluated, evaluated.cumsum(1) - 1, -1)
    moves = (place == first) | ((place > first) & (u[..., 0] < p[:, None]))
    other = (x_0 + 1 + (u[..., 1] * (vocab - 1)).long()) % vocab
    target = other if mask is None else torch.full_like(x_0, mask)
    return torch.where(moves, target, x_0), left_out
