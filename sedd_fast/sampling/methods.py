"""The table of samplers, one file each; ``sedd_fast.sample`` and ``sedd_fast.infill`` run them.

A sampler is made from a :class:`ReverseProcess` and the tokens x (B, L) at time 1. It knows the
number of its steps before the first network call, and makes one step when it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sedd_fast.sampling.grid import OneCallSampler
from sedd_fast.sampling.hit import HitSampler
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.trapezoidal import TrapezoidalSampler


class Sampler(Protocol):
    """What every sampler offers.

    Attributes:
        times: the time reached by each step, from the first to the last.
    """

    times: list[float]

    def step(self, i: int, x: Tensor) -> Tensor:
        """The tokens (B, L) after step i, from those before."""


#: Every method of ``sample`` and ``infill``, by name.
SAMPLERS: dict[str, Callable[[ReverseProcess, Tensor], Sampler]] = {
    "analytic": OneCallSampler,
    "euler": OneCallSampler,
    "tau_leaping": OneCallSampler,
    "theta_trapezoidal": TrapezoidalSampler,
    "hit": HitSampler,
}
