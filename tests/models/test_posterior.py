"""Scores from p(x_0 | x_t) and back, and networks that predict x_0 under samplers and bounds."""

from dataclasses import dataclass
from types import SimpleNamespace

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
    state_number,
    states,
)

by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)
SIGMAS = (1e-4, 0.03, 0.7, 6.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class ToyPosterior:
    """p(x_0 at a position | x_t) of the toy world, by Bayes' rule over every x_0.

    Each pair of x_t and sigma is computed once.
    """

    world: ToyWorld

    def __call__(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """ln p, (B, 3, V) float64."""
        dim = self.world.graph.dim
        levels, level = sigma.double().unique(return_inverse=True)
        pairs, pair = (level * dim**L + state_number(indices, dim)).unique(return_inverse=True)
        x_t, row = states(dim)[pairs % dim**L], pairs // dim**L
        step = torch.matrix_exp(levels[:, None, None] * self.world.graph.rate_matrix())
        a, b, c = (step[row, x_t[:, i]][:, :V] for i in range(L))  # p(x_t | x_0), (N, V)
        joint = torch.einsum("ni,nj,nk,ijk->nijk", a, b, c, self.world.data)
        joint = joint / joint.sum((1, 2, 3), keepdim=True)
        return torch.stack([joint.sum(d) for d in ((2, 3), (1, 3), (1, 2))], 1).log()[pair]


def touched(x_t: Tensor, graph: sf.Graph) -> Tensor:
    everything = torch.ones_like(x_t, dtype=torch.bool)
    return everything if graph.mask_index is None else x_t == graph.mask_index


def dense_score(p: Tensor, sigma: Tensor, x_t: Tensor, graph: sf.Graph) -> Tensor:
    """sum over x_0 of p(x_0) p(y | x_0) / p(x_t | x_0), from transition matrices."""
    step = torch.stack([graph.transition_matrix(float(s)) for s in sigma])[..., : graph.vocab_size]
    here = step[torch.arange(len(x_t))[:, None], x_t]  # (B, L, V)
    return torch.einsum("blv,byv->bly", torch.where(here > 0, p / here, 0), step)


def random_posterior(size: int, spread: float = 2.0) -> Tensor:
    logits = torch.randn(len(SIGMAS), 40, size, generator=seeded(), dtype=torch.float64) * spread
    return logits.softmax(-1)


@by_graph
def test_the_definition_and_the_way_back(graph: sf.Graph):
    p, sigma = random_posterior(V), torch.tensor(SIGMAS, dtype=torch.float64)
    x_t = torch.arange(40).expand(len(SIGMAS), 40) % graph.dim
    log_score = sf.score_from_posterior(p.log(), sigma, x_t, graph)
    assert log_score.shape == (len(SIGMAS), 40, graph.dim)
    assert not log_score.gather(-1, x_t[..., None]).any()
    rows = touched(x_t, graph)
    truth = dense_score(p, sigma, x_t, graph)
    torch.testing.assert_close(log_score.exp()[rows], truth[rows], rtol=1e-11, atol=0)
    back = sf.posterior_from_score(log_score, sigma, x_t, graph)
    torch.testing.assert_close(back[rows], p[rows], rtol=1e-10, atol=1e-10)
    own = torch.nn.functional.one_hot(x_t, graph.dim)[..., :V].double()
    assert torch.equal(back[~rows], own[~rows])


@by_graph
def test_raw_logits_are_normalised(graph: sf.Graph):
    p, x_t = random_posterior(V), torch.full((len(SIGMAS), 40), graph.dim - 1)
    one = sf.score_from_posterior(p.log() + 5, 0.4, x_t, graph)
    torch.testing.assert_close(one, sf.score_from_posterior(p.log(), 0.4, x_t, graph))


@by_graph
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits(graph: sf.Graph, dtype):
    """p(x_t) is so near 1 that 1 - p(x_t) would lose all digits in float32."""
    logits = torch.zeros(1, 1, V, dtype=dtype)
    logits[..., V - 1] = 30.0
    x_t, sigma = torch.full((1, 1), graph.dim - 1), torch.tensor([1e-3], dtype=torch.float64)
    log_score = sf.score_from_posterior(logits, sigma, x_t, graph)
    assert log_score.dtype == torch.float32
    truth = dense_score(logits.double().softmax(-1), sigma, x_t, graph).log()
    expected = truth.scatter(-1, x_t[..., None], 0.0)
    torch.testing.assert_close(log_score.double(), expected, rtol=1e-6, atol=1e-6)


@by_graph
def test_gradients_of_both(graph: sf.Graph):
    logits = random_posterior(V)[:2, :5].log().requires_grad_()
    x_t = torch.full((2, 5), graph.dim - 1)
    sigma = torch.tensor([0.05, 1.2])

    def score(z: Tensor) -> Tensor:
        return sf.score_from_posterior(z, sigma, x_t, graph)

    assert torch.autograd.gradcheck(score, logits)
    back = sf.posterior_from_score(score(logits), sigma, x_t, graph)
    upstream = torch.randn(back.shape, generator=seeded(), dtype=torch.float64)
    (grad,) = torch.autograd.grad(back, logits, upstream)
    (expected,) = torch.autograd.grad(logits.softmax(-1), logits, upstream)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9)


def test_a_probability_of_the_mask():
    graph = sf.Absorbing(V)
    logits = torch.randn(1, 2, V + 1, generator=seeded(), dtype=torch.float64)
    x_t = torch.full((1, 2), V)
    e = torch.expm1(torch.tensor(0.6, dtype=torch.float64))
    zero, share = (sf.score_from_posterior(logits, 0.6, x_t, graph, z) for z in (True, False))
    torch.testing.assert_close(zero[..., :V].exp() * e, logits[..., :V].softmax(-1))
    torch.testing.assert_close(share[..., :V].exp() * e, logits.softmax(-1)[..., :V])


@by_graph
def test_scores_without_a_posterior_give_the_denoising_distribution(graph: sf.Graph):
    log_score = torch.randn(2, 6, graph.dim, generator=seeded(), dtype=torch.float64) * 3
    x_t = torch.full((2, 6), graph.dim - 1)
    p = sf.posterior_from_score(log_score, 0.8, x_t, graph)
    assert bool((p >= 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    denoised = sf.reverse_probs(log_score, x_t, 0.8, None, graph, "denoise")
    assert torch.equal(p, denoised[..., :V])


@by_graph
def test_exact_posteriors_give_exact_scores(graph: sf.Graph):
    world = ToyWorld(graph, data_distribution())
    model = sf.PosteriorModel(ToyPosterior(world), graph)
    x_t = states(graph.dim)
    sigma = torch.linspace(0.02, 3.0, len(x_t), dtype=torch.float64)
    rows = touched(x_t, graph)
    torch.testing.assert_close(model(x_t, sigma)[rows], world(x_t, sigma)[rows])


@pytest.mark.parametrize(
    ("graph", "method"),
    [(GRAPHS[0], "analytic"), (GRAPHS[0], "hit"), (GRAPHS[1], "analytic")],
    ids=["absorbing-analytic", "absorbing-hit", "uniform-analytic"],
)
def test_samples_have_the_distribution_of_the_data(graph: sf.Graph, method: str):
    model = sf.PosteriorModel(ToyPosterior(ToyWorld(graph, data_distribution())), graph)
    tokens = sf.sample(
        model, graph, SCHEDULES[graph.kind], (8000, L), 150, method, generator=seeded(2)
    )
    assert chi_square_p(tokens, data_distribution()) > 1e-4


def test_infilling_gives_the_conditional_distribution():
    graph, distribution = GRAPHS[0], data_distribution()
    model = sf.PosteriorModel(ToyPosterior(ToyWorld(graph, distribution)), graph)
    known = torch.tensor([False, True, False]).expand(8000, L)
    tokens = sf.infill(
        model, graph, SCHEDULES["absorbing"], torch.ones(8000, L).long(), known, None, "hit",
        generator=seeded(3),
    )  # fmt: skip
    conditional = torch.zeros_like(distribution)
    conditional[:, 1] = distribution[:, 1] / distribution[:, 1].sum()
    assert chi_square_p(tokens, conditional) > 1e-4


@by_graph
def test_bound_is_the_likelihood(graph: sf.Graph):
    distribution = data_distribution()
    model = sf.PosteriorModel(ToyPosterior(ToyWorld(graph, distribution)), graph)
    noise = SCHEDULES[graph.kind]
    bound = sf.likelihood_bound(
        model, states(V), graph, noise, samples=96, generator=seeded(5), batch_size=4096
    )
    truth = -distribution.log().sum()
    assert abs(bound.total_nats - truth) < 3.5 * bound.total_stderr
    assert bound.total_stderr < 0.02 * truth


def test_a_network_without_time_and_a_module_with_logits():
    graph = sf.Absorbing(7)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(8, 8, generator=seeded()))

        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.table[input_ids])

    model = sf.PosteriorModel(Network(), graph, takes_sigma=False)
    x_0 = torch.randint(7, (4, 5), generator=seeded())
    sf.ScoreEntropyLoss(graph, sf.LogLinearNoise(), "mean")(model, x_0).backward()
    assert bool(model.network.table.grad[7].any())
    assert len(list(model.parameters())) == 1
    x_t, sigma = torch.full((2, 5), 7), torch.tensor([0.3, 2.0])
    posterior = sf.posterior_from_score(model(x_t, sigma), sigma, x_t, graph)
    torch.testing.assert_close(posterior[0], posterior[1])  # the same at any time


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": [0.0]}, TypeError, "logits must be a torch.Tensor, got list"),
        ({"logits": torch.zeros(2, 3, 7).long()}, TypeError, "logits must be float32.*int64"),
        ({"logits": torch.zeros(2, 3, 6)}, ValueError, r"\(B, L, 7\) or \(B, L, 8\).*\(2, 3, 6\)"),
        ({"logits": torch.zeros(3, 7)}, ValueError, r"logits must have shape.*\(3, 7\)"),
        ({"sigma": 0.0}, ValueError, "sigma must be positive"),
        ({"x_t": torch.zeros(2, 4).long()}, ValueError, r"x_t must have shape \(2, 3\)"),
        ({"x_t": torch.full((2, 3), 8)}, ValueError, "x_t must hold states 0 .. 7, got 8"),
        ({"graph": "absorbing"}, TypeError, "graph must be"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {
        "logits": torch.zeros(2, 3, 7),
        "sigma": 0.5,
        "x_t": torch.zeros(2, 3).long(),
        "graph": sf.Absorbing(7),
    }
    with pytest.raises(error, match=words):
        sf.score_from_posterior(**{**arguments, **change})


def test_an_object_that_is_not_a_network():
    with pytest.raises(TypeError, match=r"network must be callable.*got str"):
        sf.PosteriorModel("gpt2", sf.Absorbing(7))
