"""The samplers, one file each; ``sedd_fast.sample`` and ``sedd_fast.infill`` run them.

A sampler is a function ``plan(run, x) -> [Stage, ...]``: given what is asked for and the tokens at
time 1, it lists every stage before the first network call. A stage takes tokens to tokens. Every
network call with its draw is made in ``draw.py``.
"""

from sedd_fast.sampling import grid, hit, trapezoidal
from sedd_fast.sampling.config import Plan

#: Every method of ``sample`` and ``infill``, by name.
SAMPLERS: dict[str, Plan] = {
    "analytic": grid.plan,
    "euler": grid.plan,
    "tau_leaping": grid.plan,
    "theta_trapezoidal": trapezoidal.plan,
    "hit": hit.plan,
}
