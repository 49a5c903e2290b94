"""The samplers on a grid of times that call the network once a step.

A step from time t to s

- "analytic": takes away the noise d = sigma(t) - sigma(s);
- "euler": makes one Euler step of size h = (t - s) * sigma'(t) along the reverse rates;
- "tau_leaping": follows these rates for that h, with at most one jump a position.

Every position is drawn independently given the scores at t, so the law is exact only as the steps
grow: the error is of order 1 / steps.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 4, algorithms 2 and 3; tau-leaping:
Campbell et al. 2022 (arXiv 2205.14987), section 4.3.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sedd_fast.sampling.config import Run, Stage
from sedd_fast.sampling.draw import draw
from sedd_fast.sampling.remask import step_and_remask, with_remasking


def plan(run: Run, x: Tensor) -> list[Stage]:
    """A stage a step, and the denoising one."""
    times = run.times
    sigma, rate = run.noise(times)
    removed = -sigma.diff() if run.method == "analytic" else -times.diff() * rate[:-1]
    back = None if run.remask is None else run.remask.probability(times, sigma)
    if back is not None:
        removed = with_remasking(removed, back)
    levels = zip(sigma.to(x.device), removed.to(x.device), strict=False)  # no step at the last one
    steps = [
        partial(draw, sigma=now, removed=less, method=run.method, drawing=run.drawing)
        for now, less in levels
    ]
    if back is not None:
        pairs = zip(steps, back.to(x.device), strict=True)
        steps = [partial(step_and_remask, step=step, r=r, drawing=run.drawing) for step, r in pairs]
    stages = [Stage(t, step) for t, step in zip(times[1:].tolist(), steps, strict=True)]
    return stages + denoising(run, sigma[-1].to(x.device))


def denoising(run: Run, sigma: Tensor) -> list[Stage]:
    """The stage that removes all noise left, sigma (), or none if it is not asked for."""
    last = partial(draw, sigma=sigma, removed=sigma, method="denoise", drawing=run.drawing)
    return [Stage(0.0, last)] if run.denoise else []
