"""The theta-trapezoidal sampler: second order, two network calls a step.

A step of length h from time t, with reverse rates mu_t(y) = sigma'(t) Q[x, y] exp(l_y):

    1. x* = a tau-leap of length theta h from x along mu_t
    2. a tau-leap of length (1 - theta) h from x* along (a1 mu*(y) - a2 mu_t(y))_+,
       mu* the rates at x* and time t - theta h,
       a1 = 1 / (2 theta (1 - theta)),  a2 = ((1 - theta)^2 + theta^2) / (2 theta (1 - theta))

A channel of these rates is "from a to y at this position". Where stage 1 has jumped from a to b,
mu_t(b to y) is therefore 0, and nothing is subtracted. (An absorbing position that has jumped
stays.) With that the terms of order h^2 match the exact step's wherever the bracket stays positive,
and the error of the distribution is of order 1 / steps^2. theta = 1/2 has a1 = 2, a2 = 1.

The scores of both calls are held at once: twice the memory of the other samplers.

Source: Ren et al. 2025 (arXiv 2502.00234), algorithm 2; Anderson, Mattingly 2011 (arXiv 0906.3475).
"""

import torch
from torch import Tensor

from sedd_fast.sampling.grid import GridSampler
from sedd_fast.sampling.pieces import in_pieces
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.tau_leap import tau_leap


class TrapezoidalSampler(GridSampler):
    """ "theta_trapezoidal": two network calls a step."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        super().__init__(process, x)
        self.theta = process.config.theta
        scale = 2 * self.theta * (1 - self.theta)
        self.a1, self.a2 = 1 / scale, ((1 - self.theta) ** 2 + self.theta**2) / scale
        t = process.config.times
        inner = process.noise(t[:-1] + self.theta * t.diff())  # at t - theta h
        self.inner_sigma, self.inner_rate = (part.to(x.device) for part in inner)

    def grid_step(self, i: int, x: Tensor) -> Tensor:
        process, theta, h = self.process, self.theta, self.h[i]
        if process.all_unmasked(x):
            return x
        rate, inner_rate = self.rate[i], self.inner_rate[i]
        first = process.log_score(x, self.sigma[i])  # (B, L, dim)
        inner = tau_leap(first, x, theta * h * rate, process.graph, process.generator)
        if process.all_unmasked(inner):
            return inner
        process.begin_draw(i, 1)
        second = process.log_score(inner, self.inner_sigma[i])
        log_rate = extrapolate(second, self.a1 * inner_rate, first, self.a2 * rate, inner != x)
        return tau_leap(log_rate, inner, (1 - theta) * h, process.graph, process.generator)


def extrapolate(second: Tensor, gain: Tensor, first: Tensor, loss: Tensor, moved: Tensor) -> Tensor:
    """ln (gain exp(second) - loss exp(first))_+, (B, L, dim); loss is 0 where ``moved`` (B, L).

    In logarithms, so that no score overflows, and a few sequences at a time, to save memory.
    """

    def piece(late: Tensor, early: Tensor, moved: Tensor) -> Tensor:
        log_gain = late + gain.log().to(late.dtype)
        ratio = early + loss.log().to(early.dtype) - log_gain
        # nan: both scores are -inf, and so is log_gain. The sum below is then -inf all the same.
        ratio = ratio.masked_fill(moved[..., None], -torch.inf).nan_to_num(nan=0.0).clamp(max=0)
        return log_gain + torch.log(-torch.expm1(ratio))

    return in_pieces(piece, second, first, moved)
