"""method="hit": its distribution, the network rows that it needs, and its steps."""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import (
    SCHEDULES,
    L,
    ToyWorld,
    V,
    chi_square_p,
    data_distribution,
    sampler_distribution,
    state_number,
)
from helpers.toy_world import total_variation as tv
from sedd_fast.sampling.api import Step, infill, sample
from sedd_fast.sampling.config import timesteps

GRAPH, NOISE = sf.Absorbing(V), SCHEDULES["absorbing"]
DRAWS = 20_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Counting:
    """A network with flat normalised scores that keeps what it was called with."""

    def __init__(self, vocab_size: int) -> None:
        self.size = vocab_size
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((x, sigma))
        level = -torch.log(self.size * torch.expm1(sigma))
        return level[:, None, None].expand(*x.shape, self.size + 1)

    @property
    def rows(self) -> int:
        return sum(len(x) for x, _ in self.calls)


def test_the_distribution_is_that_of_analytic_when_scores_are_normalised() -> None:
    world = ToyWorld(GRAPH, data_distribution())
    for steps in (3, 12):
        tokens = sample(world, GRAPH, NOISE, (DRAWS, L), steps, "hit", generator=seeded(1))
        assert chi_square_p(tokens, sampler_distribution(world, NOISE, steps, "analytic")) > 1e-4
        assert chi_square_p(tokens, world.data) < 1e-4  # so few steps differ from the data


def test_the_distribution_of_another_schedule() -> None:
    """sigma(0) > 0 and sigma(1) far from infinite: P(masked at t) is m(t) / m(1), not m(t)."""
    world, noise = ToyWorld(GRAPH, data_distribution()), sf.GeometricNoise(0.05, 2.0)
    tokens = sample(world, GRAPH, noise, (DRAWS, L), 6, "hit", generator=seeded(2))
    assert chi_square_p(tokens, sampler_distribution(world, noise, 6, "analytic")) > 1e-4


def test_the_share_of_masks_falls_with_the_schedule() -> None:
    """Where noise ends at a level far from infinite: to m(t) / m(1) at t, and not to m(t)."""
    noise, seen = sf.GeometricNoise(0.05, 2.0), []
    sample(
        Counting(11), sf.Absorbing(11), noise, (40, 1000), 6, "hit", callback=seen.append,
        generator=seeded(11),
    )  # fmt: skip
    masked = torch.stack([(step.tokens == 11).double().mean() for step in seen])
    m = -torch.expm1(-noise.sigma(timesteps(6)))
    expected = torch.cat((m[1:] / m[0], torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(masked, expected, rtol=0, atol=0.012)  # 5 standard errors


def test_first_hitting_has_the_distribution_of_the_data() -> None:
    """One position at a time is exact, whatever the number of steps would be."""
    world = ToyWorld(GRAPH, data_distribution())
    tokens = sample(world, GRAPH, NOISE, (DRAWS, L), None, "hit", generator=seeded(3))
    assert chi_square_p(tokens, world.data) > 1e-4
    counts = torch.bincount(state_number(tokens, V), minlength=V**L).double()
    assert tv(counts / DRAWS, world.data.flatten()) < 0.03


@pytest.mark.parametrize("steps", [8, None])
def test_infill_gives_the_conditional_distribution(steps: int | None) -> None:
    world = ToyWorld(GRAPH, data_distribution())
    known = torch.tensor([False, True, False]).expand(DRAWS, L)
    given = torch.full((DRAWS, L), 1)
    tokens = infill(world, GRAPH, NOISE, given, known, steps, "hit", generator=seeded(4))
    exact = torch.zeros_like(world.data)
    exact[:, 1] = world.data[:, 1] / world.data[:, 1].sum()
    if steps is not None:
        exact = sampler_distribution(world, NOISE, steps, "analytic", prompt={1: 1})
    assert chi_square_p(tokens, exact) > 1e-4


@pytest.mark.parametrize("steps", [1, 7, 40, 1000])
def test_rows_are_no_more_than_steps_or_length(steps: int) -> None:
    model, (batch, length) = Counting(11), (6, 32)
    sample(model, sf.Absorbing(11), NOISE, (batch, length), steps, "hit", generator=seeded(5))
    for x, _ in model.calls:
        # every sequence computed loses a mask: it is computed because a position unmasks
        assert (x == 11).any(-1).all()
    assert model.rows <= batch * (min(steps, length) + 1)
    assert len(model.calls) <= steps + 1
    if steps == 1000:
        assert model.rows > 0.9 * batch * length  # few share an interval
        assert model.rows < 0.05 * batch * steps


def test_a_step_computes_only_sequences_with_an_event() -> None:
    model, steps = Counting(11), []
    graph = sf.Absorbing(11)
    sample(model, graph, NOISE, (5, 8), 100, "hit", callback=steps.append, generator=seeded(6))
    before = torch.full((5, 8), 11)
    assert len(steps) == len(model.calls)
    for step, (x, sigma) in zip(steps, model.calls, strict=True):
        changed = (step.tokens != before).any(-1)
        assert torch.equal(x, before[changed])
        assert sigma.shape == (int(changed.sum()),)
        before = step.tokens
    assert (before < 11).all()


def test_the_network_sees_the_noise_that_analytic_shows_it() -> None:
    model, steps = Counting(11), []
    sample(
        model, sf.Absorbing(11), NOISE, (3, 64), 20, "hit", callback=steps.append, eps=0.1,
        generator=seeded(7),
    )  # fmt: skip
    times = timesteps(20, 0.1)
    grid = torch.cat((times[1:], torch.zeros(1, dtype=torch.float64)))
    assert len(steps) == 21  # 64 positions leave no interval of so coarse a grid empty
    for i, (step, (_, sigma)) in enumerate(zip(steps, model.calls, strict=True)):
        assert step.t == pytest.approx(float(grid[i]))
        torch.testing.assert_close(sigma, NOISE.sigma(times[i]).float().expand(len(sigma)))


def test_the_callback_receives_every_step() -> None:
    seen: list[Step] = []
    tokens = sample(
        Counting(11), sf.Absorbing(11), NOISE, (2, 5), 1000, "hit", callback=seen.append,
        generator=seeded(8),
    )  # fmt: skip
    assert [step.index for step in seen] == list(range(len(seen)))
    assert {step.steps for step in seen} == {len(seen)}
    assert [step.t for step in seen] == sorted((step.t for step in seen), reverse=True)
    assert torch.equal(seen[-1].tokens, tokens)


def test_first_hitting_takes_one_row_a_masked_position() -> None:
    model, seen = Counting(11), []
    known = torch.zeros(4, 9, dtype=torch.bool)
    known[0, :4] = True
    known[1] = True
    infill(
        model, sf.Absorbing(11), NOISE, torch.ones(4, 9, dtype=torch.int64), known, None, "hit",
        generator=seeded(9), callback=seen.append,
    )  # fmt: skip
    assert model.rows == int((~known).sum())
    assert [len(x) for x, _ in model.calls] == [3] * 5 + [2] * 4
    masks = [(x == 11).sum(-1).tolist() for x, _ in model.calls]
    assert masks[:2] == [[5, 9, 9], [4, 8, 8]]
    sigmas = torch.stack([sigma[-1] for _, sigma in model.calls])
    assert (sigmas.diff() < 0).all()  # the last sequence's own noise falls
    times = torch.tensor([step.t for step in seen], dtype=torch.float64)
    latest = torch.stack([sigma.max() for _, sigma in model.calls])
    torch.testing.assert_close(NOISE.sigma(times).float(), latest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [4, None])
def test_without_denoising_masks_are_left(steps: int | None) -> None:
    model, graph = Counting(11), sf.Absorbing(11)
    tokens = sample(
        model, graph, NOISE, (40, 64), steps, "hit", denoise=False, eps=0.3, generator=seeded(10)
    )
    assert float((tokens == 11).double().mean()) == pytest.approx(0.3, abs=0.03)
    noise = NOISE.sigma(torch.tensor(0.3))
    assert min(float(sigma.min()) for _, sigma in model.calls) >= noise
    denoised = sample(model, graph, NOISE, (4, 64), steps, "hit", eps=0.3, generator=seeded(10))
    assert (denoised < 11).all()
    # below eps the noise level at eps is passed to the network, which was trained on it
    assert min(float(s.min()) for _, s in model.calls) == pytest.approx(float(noise))


def test_seeds_and_empty() -> None:
    graph = sf.Absorbing(11)
    one, two, other = (
        sample(Counting(11), graph, NOISE, (3, 16), 9, "hit", generator=seeded(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    model = Counting(11)
    assert sample(model, graph, NOISE, (0, 4), 9, "hit").shape == (0, 4)
    known = torch.ones(2, 3, dtype=torch.bool)
    given = torch.ones(2, 3, dtype=torch.int64)
    assert torch.equal(infill(model, graph, NOISE, given, known, 9, "hit"), given)
    assert not model.calls


def test_refuses_what_it_cannot_do() -> None:
    model = Counting(11)
    with pytest.raises(ValueError, match="'hit' needs the absorbing graph"):
        sample(model, sf.Uniform(11), NOISE, (1, 2), 4, "hit")
    with pytest.raises(ValueError, match=r"steps=None.* 'hit', .* only, not with 'analytic'"):
        sample(model, sf.Absorbing(11), NOISE, (1, 2), None)
