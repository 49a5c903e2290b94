"""Remasking: a step of the absorbing graph may take tokens back (ReMDM).

With a = exp(-sigma) the probability of not being masked, from a_t to a_s in a step, and a
probability r of taking a token back,

    a token:  is masked with probability r
    a mask:   becomes a token with probability (a_s - (1 - r) a_t) / (1 - a_t),

which leaves every position masked with probability 1 - a_s, as without remasking: the law of the
noised text at every time, and with it the network, stays; mistakes are drawn anew. r is at most
r_max = min(1, (1 - a_s) / a_t).

In terms of the scores a mask's step is the analytic one with expm1(d) + r for expm1(d).

Source: Wang et al. 2025 (arXiv 2503.00307), equations 5 to 7 and section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.models.interface import ScoreModel
from sedd_fast.sampling.draw import Drawing, uniform

SCHEDULES = ("cap", "rescale")


@dataclass(frozen=True)
class Remask:
    """How much is taken back.

    Args:
        schedule: "cap": r = min(eta, r_max); "rescale": r = eta * r_max.
        eta: in [0, 1]. It is of a step, so the more steps, the more is taken back in all; the
            paper uses 0.01 to 0.04 ("cap") at 128 to 1024 steps.
        t_on: only steps that start at this time or later in the sampling, t <= t_on; the paper's
            "switch". 1: all.

    Raises:
        ValueError: another schedule, a value out of range.

    Example:
        >>> sample(model, graph, noise, (4, 1024), steps=1024, remask=Remask("cap", eta=0.02))
    """

    schedule: str = "cap"
    eta: float = 0.02
    t_on: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be 'cap' or 'rescale', got {self.schedule!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}; 0.02 is usual")
        if not 0 < self.t_on <= 1:
            raise ValueError(f"t_on must lie in (0, 1], got {self.t_on}; 1 remasks in every step")

    def probability(self, times: Tensor, sigma: Tensor) -> Tensor:
        """r of every step between neighbouring times: (N + 1,), (N + 1,) -> (N,) float64."""
        kept, masked = torch.exp(-sigma), -torch.expm1(-sigma)
        most = (masked[1:] / kept[:-1]).clamp(max=1)
        r = most.clamp(max=self.eta) if self.schedule == "cap" else most * self.eta
        return torch.where(times[:-1] <= self.t_on, r, 0.0)


def with_remasking(removed: Tensor, r: Tensor) -> Tensor:
    """The noise that an analytic step must remove to make up for what is taken back."""
    return torch.log1p(torch.expm1(removed) + r)


def step_and_remask(
    model: ScoreModel,
    x: Tensor,
    step: Callable[[ScoreModel, Tensor], Tensor],
    r: Tensor,
    drawing: Drawing,
) -> Tensor:
    """The step of x (B, L), but tokens of x become masks with probability r, ()."""
    after = step(model, x)
    mask = drawing.graph.vocab_size
    back = (x != mask) & (uniform(x, drawing.generator) < r)
    return torch.where(back, mask, after)
