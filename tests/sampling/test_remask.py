"""Remasking: marginals are kept, steps follow the formula, schedules."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import (
    GRAPHS,
    SCHEDULES,
    L,
    Step,
    ToyWorld,
    V,
    chi_square_p,
    data_distribution,
    sampler_distribution,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.sampling.api import infill, sample
from sedd_fast.sampling.config import timesteps
from sedd_fast.sampling.remask import Remask

GRAPH, NOISE = GRAPHS[0], SCHEDULES["absorbing"]
WORLD = ToyWorld(GRAPH, data_distribution())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(remask: Remask, steps: int, eps: float = 1e-5) -> list[float]:
    times = timesteps(steps, eps)
    return remask.probability(times, NOISE.sigma(times)).tolist()


def remasked_distribution(remask: Remask, steps: int, eps: float = 1e-5) -> Tensor:
    """The exact distribution (4, 4, 4) of sampling with remasking."""
    p = torch.zeros((V + 1) ** L, dtype=torch.float64)
    p[-1] = 1  # all masked
    h = (1 - eps) / steps
    for i, r in enumerate(probabilities(remask, steps, eps)):
        p = Step(WORLD, NOISE, 1 - i * h, h).remasked(p, r)
    p = Step(WORLD, NOISE, eps, eps)(p, "denoise")
    return p.view(V + 1, V + 1, V + 1)[:V, :V, :V]


def test_a_step_keeps_the_marginals_of_the_noised_text() -> None:
    """From the noised distribution at t to that at s, a position at a time, at any r."""
    t, h = 0.6, 0.2
    before, after = WORLD.noised_distribution(NOISE.sigma(torch.tensor([t, t - h]).double()))
    for r in (0.0, 0.1, 0.9):
        p = Step(WORLD, NOISE, t, h).remasked(before, r).view(V + 1, V + 1, V + 1)
        expected = after.view(V + 1, V + 1, V + 1)
        for others in ((1, 2), (0, 2), (0, 1)):
            torch.testing.assert_close(p.sum(others), expected.sum(others), rtol=1e-6, atol=0)


def test_as_many_are_masked_as_without() -> None:
    """A step masks tokens that were there before it, not those that it has just drawn."""
    seen: list[Tensor] = []

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        level = -torch.log(V * torch.expm1(sigma))
        return level[:, None, None].expand(*x.shape, V + 1)

    sample(
        network, GRAPH, NOISE, (40, 1000), 6, generator=seeded(4), remask=Remask("cap", 0.4),
        callback=lambda step: seen.append(step.tokens == V),
    )  # fmt: skip
    assert any((now & ~before).any() for before, now in pairwise(seen))  # some are masked again
    masked = torch.stack([masks.double().mean() for masks in seen])
    expected = torch.cat((timesteps(6)[1:], torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(masked, expected, rtol=0, atol=0.015)  # 5 standard errors


@pytest.mark.parametrize("remask", [Remask("cap", 0.1), Remask("rescale", 0.9, t_on=0.5)])
def test_samples_have_the_distribution_of_the_formula(remask: Remask) -> None:
    tokens = sample(
        WORLD, GRAPH, NOISE, (20_000, L), 8, generator=seeded(1), remask=remask
    )  # fmt: skip
    assert chi_square_p(tokens, remasked_distribution(remask, 8)) > 1e-4
    plain = sampler_distribution(WORLD, NOISE, 8, "analytic")
    assert chi_square_p(tokens, plain) < 1e-3  # the test can tell the two apart


def test_the_distribution_tends_to_that_of_the_data() -> None:
    """As 1 / steps where a share of 4 / steps is masked again, four times over in all."""
    far, near = (tv(remasked_distribution(Remask("cap", 4 / n), n), WORLD.data) for n in (64, 256))
    assert near < 0.01
    assert far / near == pytest.approx(4, rel=0.2)


def test_schedules() -> None:
    times = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    sigma = sf.LogLinearNoise(1e-12).sigma(times)  # masked with probability t
    most = [1.0, 0.1 / 0.5]
    assert Remask("cap", 0.3).probability(times, sigma).tolist() == pytest.approx([0.3, 0.2])
    rescaled = Remask("rescale", 0.5).probability(times, sigma).tolist()
    assert rescaled == pytest.approx([0.5 * value for value in most])
    late = Remask("cap", 0.3, t_on=0.5).probability(times, sigma).tolist()
    assert late == pytest.approx([0.0, 0.2])


def test_no_remasking_is_analytic_and_a_prompt_is_kept() -> None:
    runs = [
        sample(WORLD, GRAPH, NOISE, (50, L), 6, generator=seeded(2), remask=Remask("cap", eta))
        for eta in (0.0, 0.9)
    ]
    assert all((tokens < V).all() for tokens in runs)
    known = torch.tensor([True, False, False]).expand(50, L)
    seen: list[Tensor] = []
    given = torch.full((50, L), 2)
    infill(
        WORLD, GRAPH, NOISE, given, known, 6, generator=seeded(3), remask=Remask("cap", 0.9),
        callback=lambda step: seen.append(step.tokens),
    )  # fmt: skip
    assert all((tokens[:, 0] == 2).all() for tokens in seen)
    assert any(((a < V) & (b == V)).any() for a, b in pairwise(seen))  # tokens are masked again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "loop"}, "schedule must be one of 'cap', 'rescale', got 'loop'"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\]"),
        ({"t_on": 0.0}, r"t_on must lie in \(0, 1\]"),
    ],
)
def test_remask_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Remask(**settings)


@pytest.mark.parametrize(
    ("graph", "method", "message"),
    [
        (GRAPHS[1], "analytic", "remask works with the absorbing graph only"),
        (GRAPHS[0], "euler", "remask=.* has an effect with method 'analytic' only"),
    ],
)
def test_sample_refuses_remask_elsewhere(graph: sf.Graph, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(WORLD, graph, NOISE, (1, L), 2, method, remask=Remask())
