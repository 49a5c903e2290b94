"""Remasking: a step of the absorbing graph may mask tokens again (ReMDM).

With a = exp(-sigma) the probability of not being masked, from a_t to a_s in a step, and a
probability r of masking a token again,

    a token:  is masked with probability r
    a mask:   becomes a token with probability (a_s - (1 - r) a_t) / (1 - a_t),

which leaves every position masked with probability 1 - a_s, as without remasking. So a position has
the same distribution at every time, the network fits it, and mistakes are drawn anew. r is at most
r_max = min(1, (1 - a_s) / a_t).

In terms of the scores a mask's step is the analytic one with expm1(d) + r for expm1(d).

Source: Wang et al. 2025 (arXiv 2503.00307), equations 5 to 7 and section 4.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.names import REMASK_SCHEDULES, RemaskSchedule
from sedd_fast.ops._arguments import check_choice


@dataclass(frozen=True)
class Remask:
    """How many tokens are masked again.

    Args:
        schedule: "cap": r = min(eta, r_max); "rescale": r = eta * r_max.
        eta: in [0, 1]. It applies to each step, so more steps mask more tokens again in all; the
            paper uses 0.01 to 0.04 ("cap") at 128 to 1024 steps.
        t_on: only steps that start at a time t <= t_on mask tokens again; the paper's "switch".
            1: all steps.

    Raises:
        ValueError: another schedule, a value out of range.

    Example:
        >>> sample(model, graph, noise, (4, 1024), steps=1024, remask=Remask("cap", eta=0.02))
    """

    schedule: RemaskSchedule = "cap"
    eta: float = 0.02
    t_on: float = 1.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, REMASK_SCHEDULES)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}; 0.02 is usual")
        if not 0 < self.t_on <= 1:
            raise ValueError(f"t_on must lie in (0, 1], got {self.t_on}; 1 remasks in every step")

    def probability(self, times: Tensor, sigma: Tensor) -> Tensor:
        """r of every step between neighbouring times: (N + 1,), (N + 1,) -> (N,) float64."""
        kept, masked = torch.exp(-sigma), -torch.expm1(-sigma)
        most = (masked[1:] / kept[:-1]).clamp(max=1)
        r = most.clamp(max=self.eta) if self.schedule == "cap" else most * self.eta
        return torch.where(times[:-1].to(r.device) <= self.t_on, r, 0.0)
