"""The table of samplers, one file each; ``sedd_fast.sample`` and ``sedd_fast.infill`` run them.

A sampler is made from a :class:`ReverseProcess` and the tokens x (B, L) at time 1. It knows the
number of its steps before the first network call: ``times`` holds the time that each step reaches.
``step(i, x)`` returns the tokens (B, L) after step i, from those before.
"""

from sedd_fast.names import Method
from sedd_fast.sampling.grid import GridSampler, OneCallSampler
from sedd_fast.sampling.hit import HitSampler
from sedd_fast.sampling.trapezoidal import TrapezoidalSampler

#: Every method of ``sample`` and ``infill``, by name.
SAMPLERS: dict[Method, type[GridSampler | HitSampler]] = {
    "analytic": OneCallSampler,
    "euler": OneCallSampler,
    "tau_leaping": OneCallSampler,
    "theta_trapezoidal": TrapezoidalSampler,
    "hit": HitSampler,
}
