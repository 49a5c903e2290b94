"""How fast the samplers' distributions converge, and what else each sampler promises."""

import dataclasses
import inspect

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
    data_distribution,
    grid_distribution,
    sampler_distribution,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.ops._uniforms import uniforms
from sedd_fast.sampling import config
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.tau_leap import tau_leap, total_rate
from sedd_fast.sampling.trapezoidal import extrapolate

each_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)
FIRST_ORDER = ["analytic", "euler", "tau_leaping"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def order(
    graph: sf.Graph, method: str, counts: list[int], data: Tensor, theta: float = 0.5
) -> float:
    """The slope of ln(error) in ln(steps), least squares, at time 0.2, sign turned.

    The error is that of the exact distribution: no draw is made. The rates of the absorbing graph
    grow as 1/t, so the order is measured away from 0.
    """
    world, noise, eps = ToyWorld(graph, data), SCHEDULES[graph.kind], 0.2
    target = world.noised_distribution(noise.sigma(torch.tensor([eps], dtype=torch.float64)))[0]
    reached = (grid_distribution(world, noise, n, method, eps, theta=theta) for n in counts)
    errors = [tv(p, target) for p in reached]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@each_graph
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_first_order(graph: sf.Graph, method: str) -> None:
    assert order(graph, method, [64, 128, 256], data_distribution()) == pytest.approx(1, abs=0.1)


@each_graph
@pytest.mark.parametrize("theta", [0.5, 0.4])
def test_trapezoidal_is_of_second_order_where_no_rate_is_cut_off(
    graph: sf.Graph, theta: float
) -> None:
    """Data so weakly dependent that a jump changes no rate by half: the bracket stays positive."""
    weak = data_distribution(sharpness=0.15)
    counts = [16, 32, 64]  # the start, all mask instead of nearly all, is wrong by some 1e-5
    assert order(graph, "theta_trapezoidal", counts, weak, theta) == pytest.approx(2, abs=0.15)


@each_graph
def test_trapezoidal_with_rates_cut_off(graph: sf.Graph) -> None:
    """Of first order then, and still below half the error of as many network calls."""
    found = order(graph, "theta_trapezoidal", [32, 64, 128], data_distribution())
    assert found == pytest.approx(1, abs=0.1)
    world, noise = ToyWorld(graph, data_distribution()), SCHEDULES[graph.kind]
    two_calls = tv(sampler_distribution(world, noise, 32, "theta_trapezoidal"), world.data)
    assert two_calls < 0.7 * tv(sampler_distribution(world, noise, 64, "tau_leaping"), world.data)
    assert two_calls < 0.01


@each_graph
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_distributions_at_256_steps(graph: sf.Graph, method: str) -> None:
    world = ToyWorld(graph, data_distribution())
    assert tv(sampler_distribution(world, SCHEDULES[graph.kind], 256, method), world.data) < 0.005


@each_graph
def test_total_rate_counts_every_other_state(graph: sf.Graph) -> None:
    log_score = torch.randn(3, 5, graph.dim, generator=seeded(0)) * 3
    x = torch.randint(graph.dim, (3, 5), generator=seeded(1))
    rates = graph.rate_matrix()[x] * log_score.double().exp()
    expected = rates.sum(-1) - rates.gather(-1, x[..., None]).squeeze(-1)
    torch.testing.assert_close(total_rate(log_score, x, graph), expected, rtol=1e-6, atol=0)


@each_graph
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_tau_leap_has_its_distribution(graph: sf.Graph, dtype: torch.dtype) -> None:
    """stays: exp(-h R); jumps: in proportion to the rates. Chi-square on 40,000 positions."""
    count, h = 40_000, torch.tensor(0.7, dtype=torch.float64)
    row = (torch.randn(graph.dim, generator=seeded(2), dtype=torch.float64) - 0.5).to(dtype)
    state = V if graph.kind == "absorbing" else 1
    x = torch.full((1, count), state)
    drawn = tau_leap(row.expand(1, count, -1), x, h, graph, seeded(3))
    rates = graph.rate_matrix()[state] * row.double().exp()
    rates[state] = 0
    p = -torch.expm1(-h * rates.sum()) * rates / rates.sum()
    p[state] = torch.exp(-h * rates.sum())
    counts = torch.bincount(drawn.flatten(), minlength=graph.dim).double()
    statistic = ((counts - count * p).square() / (count * p))[p > 0].sum()
    assert statistic < 25  # 4 degrees of freedom at most: p = 5e-5


def test_tau_leap_reads_no_row_that_cannot_move_and_survives_infinities() -> None:
    graph = sf.Absorbing(V)
    x = torch.tensor([[0, V, V, V]])
    log_score = torch.full((1, 4, V + 1), -torch.inf)
    log_score[0, 0] = torch.nan  # not masked: never read
    log_score[0, 1, 2] = 800.0  # jumps surely
    log_score[0, 2, 3] = -200.0  # as good as never
    drawn = tau_leap(log_score, x, torch.tensor(1.0).double(), graph, seeded(4))
    assert drawn.tolist() == [[0, 2, V, V]]  # the last one has nowhere to go


def test_tau_leap_with_one_generator_is_reproducible() -> None:
    graph, x = sf.Uniform(V), torch.zeros(2, 9, dtype=torch.int64)
    log_score = torch.zeros(2, 9, V)
    h = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(*(tau_leap(log_score, x, h, graph, seeded(5)) for _ in range(2)))
    u = uniforms(x, None, seeded(5))
    stays = u[..., 0] >= -torch.expm1(-h * (V - 1) / V)
    assert torch.equal(tau_leap(log_score, x, h, graph, seeded(5)) == x, stays)


def test_extrapolated_rates() -> None:
    second, first = (torch.randn(2, 3, 5, generator=seeded(i), dtype=torch.float64) for i in (6, 7))
    second[0, 0, 0] = first[0, 0, 0] = first[0, 0, 1] = -torch.inf
    moved = torch.tensor([[False, True, False], [True, False, False]])
    gain, loss = torch.tensor(2.2, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    expected = gain * second.exp() - loss * first.exp() * ~moved[..., None]
    got = extrapolate(second, gain, first, loss, moved).exp()
    torch.testing.assert_close(got, expected.clamp(min=0), rtol=1e-12, atol=1e-14)
    assert (expected < 0).any()


def test_trapezoidal_calls_the_network_twice_a_step() -> None:
    graph, seen = sf.Uniform(V), []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        return torch.zeros(*x.shape, V)

    noise = sf.GeometricNoise(1e-4, 12.0)
    sf.sample(model, graph, noise, (2, L), 2, "theta_trapezoidal", eps=0.2, theta=0.25)
    times = torch.tensor([1, 0.9, 0.6, 0.5, 0.2])
    torch.testing.assert_close(torch.tensor(seen), noise.sigma(times))


@pytest.mark.parametrize("theta", [0.0, 1.0, -1.0])
def test_theta_is_checked(theta: float) -> None:
    with pytest.raises(ValueError, match="theta must lie in"):
        sf.sample(
            lambda x, sigma: x, GRAPHS[0], SCHEDULES["absorbing"], (1, 1), 2,
            "theta_trapezoidal", theta=theta,
        )  # fmt: skip


@pytest.mark.parametrize("last", [2, 1.0, "yes"])
def test_denoise_is_read_as_a_truth_value(last):
    steps = []
    sf.sample(uniform_scores, sf.Uniform(5), sf.LogLinearNoise(), (1, 2), 3, denoise=last,
              callback=steps.append)  # fmt: skip
    assert [step.steps for step in steps] == [4] * 4
    assert steps[-1].t == 0


def uniform_scores(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*x.shape, 5)


@pytest.mark.parametrize("options", [{"steps": None}, {"steps": 2.5}, {"remask": sf.Remask()}])
def test_an_unknown_method_is_named_before_anything_else(options):
    with pytest.raises(ValueError, match="method must be one of 'analytic'"):
        sf.sample(uniform_scores, sf.Uniform(5), sf.LogLinearNoise(), (1, 2), method="x", **options)
    with pytest.raises(ValueError, match="method must be one of"):
        sf.sample(uniform_scores, sf.Uniform(5), sf.LogLinearNoise(), (1, 2), method=["analytic"])


@pytest.mark.parametrize("function", [sf.sample, sf.infill])
def test_every_setting_is_a_keyword_with_the_same_default(function):
    keywords = inspect.signature(function).parameters
    for field in dataclasses.fields(SamplerConfig):
        assert keywords[field.name].default == field.default


@pytest.mark.parametrize("function", [sf.sample, sf.infill])
def test_every_keyword_reaches_its_setting(function, monkeypatch):
    """With values that no two settings share, so that none can stand in another's place."""
    graph, noise = sf.Absorbing(5), sf.LogLinearNoise()
    given = {
        "method": "analytic", "steps": 7, "denoise": False, "eps": 0.01, "theta": 0.25,
        "remask": sf.Remask(eta=0.5), "temperature": 0.75, "top_p": 0.5,
        "legacy_fp32_gumbel": True, "threshold": 0.125, "entropy_bound": 0.375, "block_length": 3,
        "stop_token": 2, "guidance": 0.0 if function is sf.sample else 1.5,
    }  # fmt: skip
    seen = []
    monkeypatch.setattr(SamplerConfig, "check_graph", lambda self, graph: seen.append(self))
    monkeypatch.setattr(config, "USED_BY", {})  # no method has them all
    tokens = torch.zeros(0, 3, dtype=torch.long)
    shape = (0, 3) if function is sf.sample else (tokens, tokens.bool())
    arguments = (shape,) if function is sf.sample else shape
    function(uniform_scores, graph, noise, *arguments, **given)
    assert seen == [SamplerConfig(**given)]
