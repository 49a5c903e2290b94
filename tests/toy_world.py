"""A world small enough to enumerate: 4 tokens, length 3, any joint law, exact scores.

The noised law p_t over all dim^3 states is the data's law pushed through the transition matrix
along each axis, so the ratios p_t(y) / p_t(x) that a perfect network would give are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import sedd_fast as sf

V, L = 4, 3
GRAPHS = (sf.Absorbing(V), sf.Uniform(V))
#: Noise that ends close to the limit, so that a sampler's start is right to 1e-3 or better.
SCHEDULES = {"absorbing": sf.LogLinearNoise(1e-5), "uniform": sf.GeometricNoise(1e-4, 12.0)}


def data_law(seed: int = 0, sharpness: float = 1.5) -> Tensor:
    """A positive joint law of three dependent tokens: (4, 4, 4) float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(V, V, V, generator=generator, dtype=torch.float64) * sharpness
    return torch.softmax(logits.flatten(), 0).view(V, V, V)


def states(dim: int) -> Tensor:
    """(dim^3, 3): all sequences over ``dim`` states, in the order of :func:`state_number`."""
    return torch.cartesian_prod(*[torch.arange(dim)] * L)


def state_number(tokens: Tensor, dim: int) -> Tensor:
    """(B, 3) -> (B,): the index in :func:`states`."""
    return (tokens * torch.tensor([dim * dim, dim, 1])).sum(-1)


@dataclass(frozen=True)
class ToyWorld:
    """A graph and the law of its data; call it as a network."""

    graph: sf.Graph
    law: Tensor

    def noised_law(self, sigma: Tensor) -> Tensor:
        """p_t of every state: (N,) noise levels -> (N, dim^3) float64."""
        dim = self.graph.dim
        keep = torch.exp(-sigma.double())[:, None, None]
        limit = self.graph.transition_matrix(float("inf"))
        step = (keep * torch.eye(dim, dtype=torch.float64) + (1 - keep) * limit)[..., :V]
        law = torch.einsum("nxi,nyj,nzk,ijk->nxyz", step, step, step, self.law)
        return law.reshape(len(sigma), dim**L)

    def __call__(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """ln p_t(x with state y at a position) - ln p_t(x): (B, 3, dim) float64."""
        dim = self.graph.dim
        levels, level = sigma.unique(return_inverse=True)
        table = self.noised_law(levels).log()  # (N, dim^3)
        here = state_number(indices, dim)  # (B,)
        stride = torch.tensor([dim * dim, dim, 1])
        base = here[:, None] - indices * stride  # (B, 3): that position set to state 0
        neighbours = base[..., None] + torch.arange(dim) * stride[:, None]  # (B, 3, dim)
        return table[level[:, None, None], neighbours] - table[level, here][:, None, None]


def chain_law(
    world: ToyWorld,
    noise: sf.Noise,
    steps: int,
    method: str,
    eps: float = 1e-5,
    prompt: dict[int, int] | None = None,
) -> Tensor:
    """The exact law of a sampler's result, (4, 4, 4): its chain pushed through every step.

    Built from matrix exponentials of the rate matrix, not from the package's closed forms.
    """
    dim = world.graph.dim
    x = states(dim)  # (dim^3, 3)
    limit = world.graph.transition_matrix(float("inf"))[:, 0]
    law = torch.einsum("x,y,z->xyz", limit, limit, limit).flatten()
    law = _clamped(law, x, prompt)
    times = [1 - (1 - eps) * i / steps for i in range(steps + 1)]
    for i in range(steps + 1):
        now, rate = (float(v) for v in noise(torch.tensor(times[i], dtype=torch.float64)))
        score = world(x, torch.full((len(x),), now)).exp().nan_to_num(0.0, posinf=0.0)
        if i == steps:
            kernel = _tweedie(world.graph, x, score, now)
            if world.graph.mask_index is not None:
                kernel[..., V] = kernel[..., V] * (x != V)
        elif method == "analytic":
            after = float(noise.sigma(torch.tensor(times[i + 1], dtype=torch.float64)))
            kernel = _tweedie(world.graph, x, score, now - after)
        else:
            kernel = _euler(world.graph, x, score, rate * (1 - eps) / steps)
        kernel = kernel.clamp(min=0)
        kernel = kernel / kernel.sum(-1, keepdim=True)  # (dim^3, 3, dim)
        law = torch.einsum("n,nx,ny,nz->xyz", law, *kernel.unbind(1)).flatten()
        law = _clamped(law, x, prompt)
    return law.view(dim, dim, dim)[:V, :V, :V]


def _clamped(law: Tensor, x: Tensor, prompt: dict[int, int] | None) -> Tensor:
    """The law after the prompt's tokens are set: the mass moves, whatever stood there."""
    if not prompt:
        return law
    target = x.clone()
    for position, token in prompt.items():
        target[:, position] = token
    dim = round(len(x) ** (1 / 3))
    return torch.zeros_like(law).index_add_(0, state_number(target, dim), law)


def _tweedie(graph: sf.Graph, x: Tensor, score: Tensor, removed: float) -> Tensor:
    """(exp(-d Q) s)(y) * exp(d Q)[x, y] (equation 19): (N, 3, dim)."""
    backward = torch.matrix_exp(-removed * graph.rate_matrix())
    forward = torch.matrix_exp(removed * graph.rate_matrix())
    return (score @ backward.T) * forward[x]


def _euler(graph: sf.Graph, x: Tensor, score: Tensor, h: float) -> Tensor:
    """1[y = x] + h * Qbar(x, y), with reverse rates Q[x, y] s_y off the diagonal: (N, 3, dim)."""
    own = torch.nn.functional.one_hot(x, graph.dim).double()
    rates = graph.rate_matrix()[x] * score * (1 - own)
    return own + h * (rates - own * rates.sum(-1, keepdim=True))


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the L1 distance."""
    return float((p - q).abs().sum() / 2)
