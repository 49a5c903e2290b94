"""A world small enough to enumerate: 4 tokens, length 3, any joint distribution, exact scores.

The noised distribution p_t over all dim^3 states is that of the data, multiplied by the transition
matrix along each axis. So the ratios p_t(y) / p_t(x) that a perfect network gives are known.
"""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

import sedd_fast as sf

V, L = 4, 3
GRAPHS = (sf.Absorbing(V), sf.Uniform(V))
#: Noise that ends close to the limit, so that a sampler's start is right to 1e-3 or better.
SCHEDULES = {"absorbing": sf.LogLinearNoise(1e-5), "uniform": sf.GeometricNoise(1e-4, 12.0)}


def data_distribution(seed: int = 0, sharpness: float = 1.5) -> Tensor:
    """A positive joint distribution of three dependent tokens: (4, 4, 4) float64."""
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
    """A graph and the distribution of its data; call it as a network."""

    graph: sf.Graph
    data: Tensor

    def noised_distribution(self, sigma: Tensor) -> Tensor:
        """p_t of every state: (N,) noise levels -> (N, dim^3) float64."""
        dim = self.graph.dim
        # exp(sigma Q) by its definition, whatever closed form the graph may have
        step = torch.matrix_exp(sigma.double()[:, None, None] * self.graph.rate_matrix())[..., :V]
        p = torch.einsum("nxi,nyj,nzk,ijk->nxyz", step, step, step, self.data)
        return p.reshape(len(sigma), dim**L)

    def __call__(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """ln p_t(x with state y at a position) - ln p_t(x): (B, 3, dim) float64."""
        dim = self.graph.dim
        levels, level = sigma.unique(return_inverse=True)
        table = self.noised_distribution(levels).log()  # (N, dim^3)
        here = state_number(indices, dim)  # (B,)
        stride = torch.tensor([dim * dim, dim, 1])
        base = here[:, None] - indices * stride  # (B, 3): that position set to state 0
        neighbours = base[..., None] + torch.arange(dim) * stride[:, None]  # (B, 3, dim)
        return table[level[:, None, None], neighbours] - table[level, here][:, None, None]


def sampler_distribution(
    world: ToyWorld,
    noise: sf.Noise,
    steps: int,
    method: str,
    eps: float = 1e-5,
    prompt: dict[int, int] | None = None,
) -> Tensor:
    """The exact distribution of a sampler's result, (4, 4, 4): its chain pushed through every step.

    Built from matrix exponentials of the rate matrix, not from the package's closed forms.
    """
    dim = world.graph.dim
    p = grid_distribution(world, noise, steps, method, eps, prompt)
    p = Step(world, noise, eps, eps)(p, "denoise")
    return _clamped(p, states(dim), prompt).view(dim, dim, dim)[:V, :V, :V]


def grid_distribution(
    world: ToyWorld,
    noise: sf.Noise,
    steps: int,
    method: str,
    eps: float,
    prompt: dict[int, int] | None = None,
    theta: float = 0.5,
) -> Tensor:
    """The exact distribution (dim^3,) that the grid's steps alone reach at time ``eps``."""
    x = states(world.graph.dim)  # (dim^3, 3)
    limit = world.graph.transition_matrix(float("inf"))[:, 0]
    p = torch.einsum("x,y,z->xyz", limit, limit, limit).flatten()
    p = _clamped(p, x, prompt)
    h = (1 - eps) / steps
    for i in range(steps):
        step = Step(world, noise, 1 - i * h, h)
        p = step.trapezoid(p, theta) if method == "theta_trapezoidal" else step(p, method)
        p = _clamped(p, x, prompt)
    return p


@dataclass(frozen=True)
class Step:
    """One step of a sampler, from time t to t - h, of a distribution (dim^3,) of sequences."""

    world: ToyWorld
    noise: sf.Noise
    t: float
    h: float

    def __call__(self, p: Tensor, method: str) -> Tensor:
        """The distribution after a step of a method that calls the network once."""
        graph, x = self.world.graph, states(self.world.graph.dim)
        now, rate, score = self.at(self.t)
        if method == "denoise":
            kernel = _tweedie(graph, x, score, now)
            kernel[..., V:] = 0  # what is no token
        elif method == "analytic":
            after = self.noise.sigma(torch.tensor(self.t - self.h, dtype=torch.float64))
            kernel = _tweedie(graph, x, score, now - float(after))
        elif method == "euler":
            kernel = _euler(graph, x, score, rate * self.h)
        else:
            kernel = _leap(x, graph.rate_matrix()[x] * score, rate * self.h)
        return _through(p, kernel)

    def trapezoid(self, p: Tensor, theta: float) -> Tensor:
        """The distribution after a step of theta-trapezoidal, by way of every inner sequence."""
        graph, x = self.world.graph, states(self.world.graph.dim)
        _, rate, score = self.at(self.t)
        first = rate * graph.rate_matrix()[x] * score  # (N, 3, dim)
        jump = _leap(x, first, theta * self.h)
        inner = jump.gather(-1, x.T.expand(len(x), -1, -1)).prod(1)  # (N, N): from, to
        _, rate_in, score_in = self.at(self.t - theta * self.h)
        second = rate_in * graph.rate_matrix()[x] * score_in
        a1, a2 = 0.5 / (theta * (1 - theta)), 0.5 / (theta * (1 - theta)) - 1
        weight = p[:, None] * inner
        i, j = weight.nonzero().unbind(1)  # of the pairs that occur
        same = (x[i] == x[j])[..., None]
        rates = (a1 * second[j] - a2 * first[i] * same).clamp(min=0)
        return _through(weight[i, j], _leap(x[j], rates, (1 - theta) * self.h))

    def remasked(self, p: Tensor, r: float) -> Tensor:
        """The distribution after an analytic step with remasking, on the absorbing graph."""
        x = states(self.world.graph.dim)
        now, _, score = self.at(self.t)
        a_t = float(torch.exp(torch.tensor(-now)))
        a_s = float(torch.exp(-self.noise.sigma(torch.tensor(self.t - self.h).double())))
        gain = (a_s - (1 - r) * a_t) / (1 - a_t)
        posterior = score / score[..., :V].sum(-1, keepdim=True)
        posterior[..., V] = 0
        mask = torch.nn.functional.one_hot(torch.tensor(V), V + 1)
        own = torch.nn.functional.one_hot(x, V + 1)
        masked = (x == V)[..., None]
        kernel = torch.where(masked, gain * posterior + (1 - gain) * mask, (1 - r) * own + r * mask)
        return _through(p, kernel)

    def at(self, t: float) -> tuple[float, float, Tensor]:
        """(sigma, its rate, scores (N, 3, dim) of all sequences) at time t."""
        now, rate = (float(v) for v in self.noise(torch.tensor(t, dtype=torch.float64)))
        x = states(self.world.graph.dim)
        score = self.world(x, torch.full((len(x),), now, dtype=torch.float64)).exp()
        return now, rate, score.nan_to_num(0.0, posinf=0.0)


def _through(p: Tensor, kernel: Tensor) -> Tensor:
    """The next distribution, from p (N,) and the weights (N, 3, dim) of every next token."""
    kernel = kernel.clamp(min=0)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    return torch.einsum("n,nx,ny,nz->xyz", p, *kernel.unbind(1)).flatten()


def _clamped(p: Tensor, x: Tensor, prompt: dict[int, int] | None) -> Tensor:
    """The distribution after the prompt's tokens are set: the mass moves, whatever stood there."""
    if not prompt:
        return p
    target = x.clone()
    for position, token in prompt.items():
        target[:, position] = token
    dim = round(len(x) ** (1 / 3))
    return torch.zeros_like(p).index_add_(0, state_number(target, dim), p)


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


def _leap(x: Tensor, rates: Tensor, h: float) -> Tensor:
    """Stays with probability exp(-h R), R the rates off x, else jumps by these: (N, 3, dim)."""
    own = torch.nn.functional.one_hot(x, rates.shape[-1]).double()
    rates = rates * (1 - own)
    total = rates.sum(-1, keepdim=True)
    return own * torch.exp(-h * total) - torch.expm1(-h * total) * rates / total.clamp(min=1e-300)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the L1 distance."""
    return float((p - q).abs().sum() / 2)


def chi_square_p(tokens: Tensor, p: Tensor) -> float:
    """p-value of draws (N, 3) from p (4, 4, 4); states of probability 0 must not occur."""
    counts = torch.bincount(state_number(tokens, V), minlength=V**L).double()
    expected = p.flatten() * len(tokens)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    return float(stats.chisquare(counts[possible], expected[possible]).pvalue)
