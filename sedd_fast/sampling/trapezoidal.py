"""The theta-trapezoidal sampler: second order, two network calls a step.

A step of length h from time t, with reverse rates mu_t(y) = sigma'(t) Q[x, y] exp(l_y):

    1. x* = a leap of length theta h from x along mu_t
    2. a leap of length (1 - theta) h from x* along (a1 mu*(y) - a2 mu_t(y))_+,
       mu* the rates at x* and time t - theta h,
       a1 = 1 / (2 theta (1 - theta)),  a2 = ((1 - theta)^2 + theta^2) / (2 theta (1 - theta))

A channel of these rates is "from a to y at this position", so where stage 1 has jumped from a to
b, mu_t(b to y) is 0: nothing is taken off there. (An absorbing position that has jumped stays.)
With that the terms of order h^2 match the exact step's wherever the bracket stays positive, and
the error of the law is of order 1 / steps^2. theta = 1/2 has a1 = 2, a2 = 1.

The scores of both calls are held at once: twice the memory of the other samplers.

Source: Ren et al. 2025 (arXiv 2502.00234), algorithm 2; Anderson, Mattingly 2011 (arXiv 0906.3475).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.models.interface import ScoreModel
from sedd_fast.sampling.config import Run, Stage
from sedd_fast.sampling.draw import Drawing, all_unmasked, scores
from sedd_fast.sampling.grid import denoising
from sedd_fast.sampling.leap import leap, piece_size, pieces


def plan(run: Run, x: Tensor) -> list[Stage]:
    """A stage of two network calls a step, and the denoising one."""
    times = run.times
    inner = times[:-1] + run.theta * times.diff()  # t - theta h
    start, middle = (torch.stack(run.noise(t), -1).to(x.device) for t in (times, inner))
    h = -times.diff().to(x.device)
    stages = [
        Stage(t, _Step(start[i], middle[i], h[i], run.theta, run.drawing))
        for i, t in enumerate(times[1:].tolist())
    ]
    return stages + denoising(run, start[-1, 0])


@dataclass(frozen=True)
class _Step:
    """One step.

    Attributes:
        start, middle: (2,) float64, total noise and its rate at t and at t - theta h.
        h: () float64, length in time.
    """

    start: Tensor
    middle: Tensor
    h: Tensor
    theta: float
    drawing: Drawing

    def __call__(self, model: ScoreModel, x: Tensor) -> Tensor:
        graph, generator = self.drawing.graph, self.drawing.generator
        if all_unmasked(x, graph):
            return x
        (sigma, rate), (sigma_in, rate_in) = self.start, self.middle
        first = scores(model, x, sigma, self.drawing)  # (B, L, dim)
        inner = leap(first, x, self.theta * self.h * rate, graph, generator)
        if all_unmasked(inner, graph):
            return inner
        second = scores(model, inner, sigma_in, self.drawing)
        a1, a2 = _weights(self.theta)
        log_rate = extrapolated(second, a1 * rate_in, first, a2 * rate, inner != x)
        return leap(log_rate, inner, (1 - self.theta) * self.h, graph, generator)


def _weights(theta: float) -> tuple[float, float]:
    scale = 2 * theta * (1 - theta)
    return 1 / scale, ((1 - theta) ** 2 + theta**2) / scale


def extrapolated(
    second: Tensor, gain: Tensor, first: Tensor, loss: Tensor, moved: Tensor
) -> Tensor:
    """ln (gain exp(second) - loss exp(first))_+, (B, L, dim); loss is 0 where ``moved`` (B, L).

    In logarithms, so that no score overflows, and by pieces, for the memory's sake.
    """
    parts = zip(pieces(second), pieces(first), moved.split(piece_size(first)), strict=True)
    return torch.cat([_extrapolated(late, gain, early, loss, done) for late, early, done in parts])


def _extrapolated(late: Tensor, gain: Tensor, early: Tensor, loss: Tensor, moved: Tensor) -> Tensor:
    log_gain = late + gain.log().to(late.dtype)
    ratio = early + loss.log().to(early.dtype) - log_gain
    # nan: both scores are -inf, and so is log_gain. The sum below is then -inf all the same.
    ratio = ratio.masked_fill(moved[..., None], -torch.inf).nan_to_num(nan=0.0).clamp(max=0)
    return log_gain + torch.log(-torch.expm1(ratio))
