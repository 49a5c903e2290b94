"""Times and noise levels are float32 at least, whatever torch's default dtype or the caller's."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.tiny_models import tiny
from sedd_fast.losses import stratified_times

V, B, L = 11, 64, 6
NOISE = sf.LogLinearNoise()
ABSORBING, UNIFORM = sf.Absorbing(V), sf.Uniform(V)
CYCLE = sf.DenseGraph(torch.roll(torch.eye(V), 1, 0) - torch.eye(V))
OBJECTIVES = {
    "score entropy": sf.ScoreEntropyLoss(ABSORBING, NOISE),
    "score entropy, uniform": sf.ScoreEntropyLoss(UNIFORM, sf.GeometricNoise()),
    "cross entropy": sf.MaskedCrossEntropy(ABSORBING, NOISE),
    "lambda": sf.MaskedCrossEntropy(ABSORBING, NOISE, over="lambda"),
    "d3pm": sf.D3PMLoss(ABSORBING, NOISE),
    "d3pm, uniform": sf.D3PMLoss(UNIFORM, NOISE),
    "concrete": sf.ConcreteScoreMatching(ABSORBING, NOISE),
    "dense": sf.DenseScoreEntropyLoss(CYCLE, NOISE),
}
by_objective = pytest.mark.parametrize("name", OBJECTIVES)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


X_0 = torch.randint(V, (B, L), generator=seeded())


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def network(graph: sf.Graph) -> sf.PosteriorModel:
    table = torch.randn(graph.dim, V, generator=seeded(), dtype=torch.float32)
    return sf.PosteriorModel(lambda x, s: table[x] * (1 + s[:, None, None].float()), graph)


def run(objective: sf.losses.Objective, **given: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the noise levels that the network was passed."""
    seen: list[Tensor] = []
    if isinstance(objective.graph, sf.DenseGraph):
        table = torch.randn(V, V, generator=seeded(), dtype=torch.float32)
        model = lambda x, s: (seen.append(s), table[x])[1]  # noqa: E731
    else:
        model = network(objective.graph)
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    return objective(model, X_0, generator=seeded(), **given), seen[0]


@by_objective
def test_the_default_dtype_changes_nothing(name: str, default: torch.dtype):
    loss, sigma = run(OBJECTIVES[name])
    torch.set_default_dtype(torch.float32)
    expected, levels = run(OBJECTIVES[name])
    assert sigma.dtype == torch.float32
    assert bool(sigma.isfinite().all())
    assert torch.equal(sigma, levels)
    torch.testing.assert_close(loss, expected)


@by_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_times_of_the_caller_may_have_16_bits(name: str, dtype: torch.dtype):
    t = torch.linspace(0.01, 1, B).to(dtype)
    loss, sigma = run(OBJECTIVES[name], t=t)
    expected, levels = run(OBJECTIVES[name], t=t.float())
    assert torch.equal(sigma, levels)
    assert torch.equal(loss, expected)
    assert bool(loss.isfinite().all())


def test_drawn_times_are_distinct_and_positive(default: torch.dtype):
    t = stratified_times(4096, 1e-3, "cpu", seeded())
    assert t.dtype == torch.float32
    assert len(t.unique()) > 4000
    assert 1e-3 <= float(t.min()) < 2e-3
    assert float(t.max()) <= 1


@pytest.mark.parametrize("noise", [NOISE, sf.GeometricNoise()], ids=lambda n: type(n).__name__)
def test_schedules_take_times_of_16_bits(noise: sf.Noise):
    t = torch.tensor([0.01, 0.999, 1.0], dtype=torch.bfloat16)
    for made, expected in zip(noise(t), noise(t.float()), strict=True):
        assert made.dtype == torch.float32
        assert torch.equal(made, expected)
    assert torch.equal(noise.sigma(t), noise.sigma(t.float()))
    assert torch.equal(noise.rate(t), noise.rate(t.float()))
    with pytest.raises(TypeError, match="floating-point tensor of times"):
        sf.MaskedCrossEntropy(ABSORBING, NOISE)(network(ABSORBING), X_0, t=torch.ones(B).long())


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_networks_samplers_and_bounds(graph: str, default: torch.dtype):
    def found() -> list[Tensor]:
        model = made.eval()
        process = model.graph, model.noise
        sigma = torch.tensor([0.5], dtype=torch.bfloat16)
        methods = ["analytic", "euler", "tau_leaping", "theta_trapezoidal"]
        methods += ["hit"] * (graph == "absorbing")
        with torch.no_grad():
            scores = [model(X_0[:1], s) for s in (sigma, sigma.float())]
        assert torch.equal(*scores)
        tokens = [sf.sample(model, *process, (4, L), 5, m, generator=seeded()) for m in methods]
        bound = sf.likelihood_bound(model, X_0[:2], *process, 8, generator=seeded())
        return [*tokens, bound.nats]

    torch.set_default_dtype(torch.float32)
    made = tiny(graph)
    expected = found()
    torch.set_default_dtype(default)
    for value, wanted in zip(found(), expected, strict=True):
        torch.testing.assert_close(value, wanted)
