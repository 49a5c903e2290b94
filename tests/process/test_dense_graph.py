"""DenseGraph: the two graphs as dense ones, and a process without a closed form."""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import (
    L,
    ToyWorld,
    V,
    chi_square_p,
    data_distribution,
    sampler_distribution,
    states,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.process import dense_graph as dense
from sedd_fast.sampling.config import SamplerConfig

PAIRS = [
    (graph, sf.DenseGraph(graph.rate_matrix(), graph.vocab_size))
    for graph in (sf.Absorbing(V), sf.Uniform(V))
]
each_pair = pytest.mark.parametrize(("graph", "same"), PAIRS, ids=["absorbing", "uniform"])
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed() -> sf.DenseGraph:
    """A graph of five states, four of them tokens, with all rates different."""
    rates = torch.rand(5, 5, generator=seeded(1), dtype=torch.float64) + 0.05
    rates -= rates.diag().diag()
    return sf.DenseGraph(rates - rates.sum(0).diag(), vocab_size=V)


NOISE = sf.GeometricNoise(1e-4, 6.0)


@pytest.fixture
def inputs(graph: sf.Graph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_score (3, 40, dim), sigma (3,), x_t, x_0 (3, 40)."""
    x_0 = torch.randint(V, (3, 40), generator=seeded(2))
    sigma = torch.tensor([0.01, 0.7, 3.0], dtype=torch.float64)
    x_t = sf.sample_transition(x_0, sigma, graph, generator=seeded(3))
    # small scores, so that no weight is clamped in only one of the two graphs
    log_score = torch.randn(3, 40, graph.dim, generator=seeded(4), dtype=torch.float64) - 1
    return log_score.scatter(-1, x_t[..., None], 0.0), sigma, x_t, x_0


@each_pair
def test_same_matrices_and_limit(graph: sf.Graph, same: sf.DenseGraph) -> None:
    assert (same.kind, same.dim, same.vocab_size) == ("dense", graph.dim, V)
    for sigma in (0.0, 0.3, 7.0, float("inf")):
        torch.testing.assert_close(
            same.transition_matrix(sigma), graph.transition_matrix(sigma), **EXACT
        )
    expected = graph.transition_matrix(float("inf"))[:, 0]
    torch.testing.assert_close(same.limit, expected, **EXACT)
    drawn = torch.bincount(same.sample_limit((4000,), generator=seeded(5)), minlength=graph.dim)
    assert (drawn[expected == 0] == 0).all()
    assert (drawn / 4000 - expected).abs().max() < 0.04


@each_pair
def test_same_loss_and_gradient(graph: sf.Graph, same: sf.DenseGraph, inputs: tuple) -> None:
    log_score, sigma, x_t, x_0 = inputs
    losses, gradients = [], []
    for function, process in ((sf.score_entropy, graph), (dense.score_entropy, same)):
        leaf = log_score.clone().requires_grad_()
        loss = function(leaf, sigma, x_t, x_0, process)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
    torch.testing.assert_close(*losses, **EXACT)
    torch.testing.assert_close(*gradients, **EXACT)


@each_pair
@pytest.mark.parametrize("method", ["analytic", "euler", "denoise"])
def test_same_reverse_step(
    graph: sf.Graph, same: sf.DenseGraph, inputs: tuple, method: str
) -> None:
    log_score, sigma, x_t, _ = inputs
    removed = sigma / 3
    log_score = log_score.scatter(-1, x_t[..., None], 5.0)  # not read: it is 0 by definition
    weights = dense.reverse_weights(log_score, x_t, sigma, removed, same, method)
    if graph.mask_index is not None and method == "denoise":
        # both keep unmasked tokens: the dense form gives the mask no weight
        assert (weights[..., V] == 0).all()
    expected = sf.reverse_probs(log_score, x_t, sigma, removed, graph, method)
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected, **EXACT)


@each_pair
def test_same_objective(graph: sf.Graph, same: sf.DenseGraph, inputs: tuple) -> None:
    log_score, _, x_t, x_0 = inputs
    mask = torch.rand(3, 40, generator=seeded(6)) < 0.7
    x_t = torch.where(mask, x_t, x_0)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        values = [
            kind(process, NOISE, reduction)(
                lambda x, sigma: log_score.scatter(-1, x[..., None], 0.0), x_0, mask, t, x_t
            )
            for kind, process in (
                (sf.ScoreEntropyLoss, graph),
                (sf.DenseScoreEntropyLoss, same),
            )
        ]
        torch.testing.assert_close(*values, **EXACT)


def test_objective_draws_its_own_noise() -> None:
    """The mean loss over noise and time is smaller for exact scores than for any others."""
    graph = skewed()
    world = ToyWorld(graph, data_distribution())
    x_0 = states(V)[torch.multinomial(world.data.flatten(), 400, True, generator=seeded(7))]
    objective = sf.DenseScoreEntropyLoss(graph, NOISE, "mean")
    best = objective(world, x_0, generator=seeded(8))
    wrong = objective(lambda x, s: world(x, s) * 0.8, x_0, generator=seeded(8))
    assert 0 < best < wrong


def test_transitions_of_a_skewed_process() -> None:
    graph, count = skewed(), 30_000
    x_0 = torch.full((1, count), 2)
    drawn = dense.sample_transition(x_0, 0.6, graph, seeded(9))
    distribution = torch.matrix_exp(0.6 * graph.rate_matrix())[:, 2]
    counts = torch.bincount(drawn.flatten(), minlength=5).double()
    assert ((counts - count * distribution).square() / (count * distribution)).sum() < 25


@pytest.mark.parametrize("method", ["analytic", "euler", "tau_leaping", "theta_trapezoidal"])
def test_samplers_on_a_skewed_process(method: str) -> None:
    """Each sampler has the distribution of its chain, and many steps that of the data."""
    graph = skewed()
    world, steps = ToyWorld(graph, data_distribution()), 16
    tokens = sf.sample(world, graph, NOISE, (10_000, L), steps, method, generator=seeded(10))
    distribution = sampler_distribution(world, NOISE, steps, method)
    assert chi_square_p(tokens, distribution) > 1e-4
    many = 48 if method == "theta_trapezoidal" else 256
    assert tv(sampler_distribution(world, NOISE, many, method), world.data) < 0.01


def test_infill_on_a_skewed_process() -> None:
    graph = skewed()
    world = ToyWorld(graph, data_distribution())
    known = torch.tensor([False, True, False]).expand(10_000, L)
    given = torch.ones(10_000, L, dtype=torch.int64)
    tokens = sf.infill(world, graph, NOISE, given, known, 8, generator=seeded(11))
    distribution = sampler_distribution(world, NOISE, 8, "analytic", prompt={1: 1})
    assert chi_square_p(tokens, distribution) > 1e-4


@pytest.mark.parametrize(
    ("rates", "error", "message"),
    [
        ([[0.0]], TypeError, "rates must be a torch.Tensor"),
        (torch.zeros(2, 3), ValueError, r"rates must have shape \(n, n\)"),
        (torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), ValueError, "off the diagonal, at least 0"),
        (torch.tensor([[-1.0, 1.0], [0.5, -0.5]]), ValueError, "every column of rates must sum"),
        (torch.zeros(3, 3), ValueError, "more than one stationary"),
    ],
)
def test_an_invalid_rate_matrix_is_refused(
    rates: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sf.DenseGraph(rates)


def test_operations_without_a_dense_form_are_refused() -> None:
    graph = skewed()
    objective, x_0 = sf.DenseScoreEntropyLoss(graph, NOISE), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="loss_mask must be bool"):
        objective(ToyWorld(graph, data_distribution()), x_0, torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"loss_mask must be a torch\.Tensor, got list"):
        objective(ToyWorld(graph, data_distribution()), x_0, [True])
    with pytest.raises(ValueError, match="only 5 states"):
        sf.DenseGraph(graph.rate_matrix(), 6)
    with pytest.raises(ValueError, match=r"graph has kind 'dense'.* into sample, infill and Dense"):
        sf.reverse_step(torch.zeros(1, 1, 5), torch.zeros(1, 1).long(), 1.0, 0.1, graph)
    with sf.use_backend("cpp"), pytest.raises(ValueError, match="a DenseGraph is plain torch"):
        SamplerConfig().check_graph(graph)
    with pytest.raises(ValueError, match="takes no temperature"):
        SamplerConfig(temperature=0.5).check_graph(graph)
    with pytest.raises(ValueError, match="'hit' needs the absorbing graph"):
        sf.sample(ToyWorld(graph, data_distribution()), graph, NOISE, (1, L), 2, "hit")
