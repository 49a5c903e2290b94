"""With exact scores, samplers must give back the data's distribution and bounds its likelihood."""

import numpy as np
import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import (
    GRAPHS,
    SCHEDULES,
    L,
    ToyWorld,
    V,
    chi_square_p,
    data_distribution,
    sampler_distribution,
    state_number,
    states,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.evaluate import likelihood_bound, limit_divergence
from sedd_fast.sampling.api import infill, sample

GRAPH_IDS = [graph.kind for graph in GRAPHS]
each_graph = pytest.mark.parametrize("graph", GRAPHS, ids=GRAPH_IDS)
ON_A_GRID = ["analytic", "euler", "tau_leaping", "theta_trapezoidal"]
each_method = pytest.mark.parametrize("method", ON_A_GRID)
DRAWS = 20_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def many(method: str) -> int:
    """Steps enough for a distribution within 0.005."""
    return 48 if method == "theta_trapezoidal" else 256


@each_graph
def test_noised_law_is_the_law_through_transition_matrices(graph: sf.Graph) -> None:
    world = ToyWorld(graph, data_distribution())
    for sigma in (1e-3, 0.7, 9.0):
        step = graph.transition_matrix(sigma)[:, :V]
        expected = torch.einsum("xi,yj,zk,ijk->xyz", step, step, step, world.data).flatten()
        torch.testing.assert_close(
            world.noised_distribution(torch.tensor([sigma]))[0].sum().item(), 1.0
        )
        torch.testing.assert_close(
            world.noised_distribution(torch.tensor([sigma], dtype=torch.float64))[0], expected
        )


@each_graph
@each_method
def test_sample_has_the_law_of_its_chain(graph: sf.Graph, method: str) -> None:
    world, noise = ToyWorld(graph, data_distribution()), SCHEDULES[graph.kind]
    steps = 4 if method == "theta_trapezoidal" else 12
    tokens = sample(world, graph, noise, (DRAWS, L), steps, method, generator=seeded(1))
    assert chi_square_p(tokens, sampler_distribution(world, noise, steps, method)) > 1e-4
    # The test has the power to see the bias of so few steps.
    assert chi_square_p(tokens, world.data) < 1e-4


@each_graph
def test_many_steps_give_back_the_data_law(graph: sf.Graph) -> None:
    world = ToyWorld(graph, data_distribution())
    shape = (DRAWS // 2, L)  # few enough not to see the bias of order 1 / steps
    tokens = sample(world, graph, SCHEDULES[graph.kind], shape, steps=200, generator=seeded(2))
    assert chi_square_p(tokens, world.data) > 1e-4


#: Every method and every position once: the prompt is put back in the same way for all methods.
@pytest.mark.parametrize(
    ("method", "position"),
    [("analytic", 0), ("analytic", 1), ("analytic", 2), *((name, 1) for name in ON_A_GRID[1:])],
)
def test_absorbing_infill_gives_the_conditional_law(method: str, position: int) -> None:
    graph, token = sf.Absorbing(V), 1
    world, noise = ToyWorld(graph, data_distribution()), SCHEDULES["absorbing"]
    known = torch.zeros(DRAWS, L, dtype=torch.bool)
    known[:, position] = True
    given = torch.full((DRAWS, L), token)
    tokens = infill(world, graph, noise, given, known, 8, method, generator=seeded(3))
    assert (tokens[:, position] == token).all()
    distribution = sampler_distribution(world, noise, 8, method, prompt={position: token})
    assert chi_square_p(tokens, distribution) > 1e-4
    # and that chain's distribution tends to the data's distribution given the prompt
    conditional = torch.zeros_like(world.data)
    conditional.select(position, token).copy_(world.data.select(position, token))
    conditional /= conditional.sum()
    limit = sampler_distribution(world, noise, many(method), method, prompt={position: token})
    assert tv(limit, conditional) < 0.005


@each_method
def test_uniform_infill_is_only_an_approximation(method: str) -> None:
    graph = sf.Uniform(V)
    world, noise = ToyWorld(graph, data_distribution()), SCHEDULES["uniform"]
    known = torch.tensor([False, True, False]).expand(DRAWS, L)
    tokens = infill(
        world, graph, noise, torch.ones_like(known).long(), known, 12, method, generator=seeded(4)
    )
    distribution = sampler_distribution(world, noise, 12, method, prompt={1: 1})
    assert chi_square_p(tokens, distribution) > 1e-4
    conditional = torch.zeros_like(world.data)
    conditional[:, 1] = world.data[:, 1] / world.data[:, 1].sum()
    limit = sampler_distribution(world, noise, 2 * many(method), method, prompt={1: 1})
    marginal = torch.zeros_like(world.data)
    marginal[:, 1] = world.data.sum(1)
    # More steps do not help (0.09 here), though it is far better than to ignore the prompt.
    assert 0.05 < tv(limit, conditional) < 0.5 * tv(marginal, conditional)


@pytest.mark.parametrize(
    ("graph", "mode"),
    [(GRAPHS[0], "exact"), (GRAPHS[0], "normalised"), (GRAPHS[1], "exact")],
    ids=["absorbing-exact", "absorbing-normalised", "uniform-exact"],
)
def test_bound_is_the_likelihood(graph: sf.Graph, mode: str) -> None:
    world = ToyWorld(graph, data_distribution())
    truth = -world.data.flatten().log()
    bound = likelihood_bound(
        world,
        states(V),
        graph,
        SCHEDULES[graph.kind],
        samples=192,
        mode=mode,
        generator=seeded(5),
        batch_size=4096,
        times="stratified",
    )
    z = (bound.nats - truth) / bound.stderr
    assert bound.strict
    assert bound.total_stderr < 0.02 * truth.sum()
    assert abs(bound.total_nats - truth.sum()) < 3.5 * bound.total_stderr
    assert z.abs().max() < 5
    assert 0.6 < z.square().mean().sqrt() < 1.4  # the standard errors mean what they say


def test_absorbing_bound_is_the_likelihood_by_enumeration() -> None:
    """sum over subsets of masked positions of B(n, L - n + 1) * bracket, no Monte Carlo."""
    graph, distribution = sf.Absorbing(V), data_distribution()
    world, x_0, sigma = (
        ToyWorld(graph, distribution),
        states(V),
        torch.tensor(0.37, dtype=torch.float64),
    )
    nats = torch.zeros(len(x_0), dtype=torch.float64)
    for subset in range(1, 2**L):
        masked = torch.tensor([bool(subset >> i & 1) for i in range(L)])
        x_t = torch.where(masked, V, x_0)
        bracket = torch.expm1(sigma) * sf.score_entropy(
            world(x_t, sigma.expand(len(x_0))), sigma, x_t, x_0, graph
        )
        # dm / m * m^n (1 - m)^(L - n) integrates to (n - 1)! (L - n)! / L!
        n = int(masked.sum())
        nats += (
            torch.lgamma(torch.tensor([n, L - n + 1.0]).double()).sum().exp() / 6 * bracket.sum(-1)
        )
    torch.testing.assert_close(nats, -distribution.flatten().log(), rtol=1e-10, atol=0)


def test_uniform_bound_is_the_likelihood_by_quadrature() -> None:
    """Gauss-Legendre in ln sigma, x_t enumerated; what the ends owe by enumeration too."""
    graph, distribution = sf.Uniform(V), data_distribution()
    world, x = ToyWorld(graph, distribution), states(V)
    low, high = 1e-6, 14.0
    node, weight = np.polynomial.legendre.leggauss(60)
    span = np.log(high / low) / 2
    nats = torch.zeros(len(x), dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(x)))
    x_0, x_t = x[pairs[:, 0]], x[pairs[:, 1]]

    def reach(sigma: float) -> Tensor:  # p(x_t | x_0), (64 * 64,)
        return graph.transition_matrix(sigma)[x_t, x_0].prod(-1)

    for z, w in zip(node, weight, strict=True):
        sigma = float(low * np.exp(span * (z + 1)))
        score = world(x, torch.full((len(x),), sigma, dtype=torch.float64))[pairs[:, 1]]
        loss = sf.score_entropy(score, sigma, x_t, x_0, graph).sum(-1)
        nats += float(w * span * sigma) * (reach(sigma) * loss).view(len(x), -1).sum(1)
    nats += L * limit_divergence(high, V)
    score = world(x, torch.full((len(x),), low, dtype=torch.float64))[pairs[:, 1]]
    step = sf.reverse_probs(score, x_t, low, None, graph, "denoise")
    own = step.gather(-1, x_0[..., None]).squeeze(-1).log().sum(-1)
    nats -= (reach(low) * own).view(len(x), -1).sum(1)
    torch.testing.assert_close(nats, -distribution.flatten().log(), rtol=0, atol=2e-5)


@each_graph
def test_a_wrong_model_is_bounded_above_the_entropy(graph: sf.Graph) -> None:
    distribution, other = data_distribution(0), data_distribution(1)
    tokens = states(V)[torch.multinomial(distribution.flatten(), 200, True, generator=seeded(6))]
    bound = likelihood_bound(
        ToyWorld(graph, other), tokens, graph, SCHEDULES[graph.kind], 64, generator=seeded(7),
        batch_size=4096,
    )  # fmt: skip
    truth = -other.flatten().log()[state_number(tokens, V)].sum()
    best = -distribution.flatten().log()[state_number(tokens, V)].sum()
    assert abs(bound.total_nats - truth) < 3.5 * bound.total_stderr
    assert bound.total_nats > best + 3 * bound.total_stderr


def test_limit_divergence_is_the_divergence() -> None:
    for sigma in (1e-3, 0.5, 7.0):
        column = sf.Uniform(V).transition_matrix(sigma)[:, 0]
        expected = float((column * (column * V).log()).sum())
        assert limit_divergence(sigma, V) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert limit_divergence(60.0, V) == pytest.approx(0, abs=1e-15)
