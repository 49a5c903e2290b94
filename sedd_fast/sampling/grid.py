"""The samplers that walk a grid of times: what they share, and those with one network call a step.

A step from time t to s

- "analytic": removes the noise d = sigma(t) - sigma(s);
- "euler": makes one Euler step of size h = (t - s) * sigma'(t) along the reverse rates;
- "tau_leaping": follows these rates for that h, with at most one jump a position.

Every position is drawn independently given the scores at t. The distribution is therefore exact
only in the limit of many steps: the error is of order 1 / steps.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 4, algorithms 2 and 3; tau-leaping:
Campbell et al. 2022 (arXiv 2205.14987), section 4.3.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import uniform
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.sampler import Sampler


class GridSampler(Sampler):
    """Steps from time to time of a grid, and the denoising step, which reaches time 0."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        grid = process.config.times
        self.times: list[float] = grid[1:].tolist() + [0.0] * bool(process.config.denoise)
        super().__init__(process, len(self.times))
        self.h = -grid.diff().to(x.device)  # (steps,)
        self.sigma, self.rate = (part.to(x.device) for part in process.noise(grid))  # (steps + 1,)

    def step(self, i: int, x: Tensor) -> tuple[Tensor, float]:
        """The tokens (B, L) after step i, from those before, and the time reached."""
        if i < len(self.h):
            return self.grid_step(i, x), self.times[i]
        return self.process.step(x, self.sigma[-1], self.sigma[-1], "denoise"), self.times[i]

    @abstractmethod
    def grid_step(self, i: int, x: Tensor) -> Tensor:
        """The tokens after step i, from those before; it is not the denoising step."""


class OneCallSampler(GridSampler):
    """ "analytic", "euler" and "tau_leaping": one network call a step."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        super().__init__(process, x)
        self.method, remask = process.config.method, process.config.remask
        is_analytic = self.method == "analytic"
        self.removed = -self.sigma.diff() if is_analytic else self.h * self.rate[:-1]
        self.r = None if remask is None else remask.probability(process.config.times, self.sigma)
        if self.r is not None:
            # More noise is removed, to make up for the tokens that are masked again (remask.py).
            self.removed = torch.log1p(torch.expm1(self.removed) + self.r)

    def grid_step(self, i: int, x: Tensor) -> Tensor:
        after = self.process.step(x, self.sigma[i], self.removed[i], self.method)
        if self.r is None:
            return after
        mask = self.process.graph.mask_index
        assert mask is not None  # SamplerConfig.check_graph
        self.process.begin_draw(i, 1)
        u = uniform(x.shape, x.device, self.process.generator)
        again = (x != mask) & (u < self.r[i])
        return torch.where(again, mask, after)
