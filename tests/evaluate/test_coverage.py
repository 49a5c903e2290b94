"""Bound +- 1.96 stderr covers 95 % of estimates; the distributions that samples are drawn from."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

import sedd_fast as sf
from helpers.toy_world import L, V, state_number, states
from sedd_fast.evaluate import LikelihoodBound, likelihood_bound
from sedd_fast.evaluate.levels import Levels, noised
from sedd_fast.evaluate.standard_error import covering_error, student_factor, total

ABSORBING, UNIFORM = sf.Absorbing(V), sf.Uniform(V)
LOG_LINEAR, GEOMETRIC = sf.LogLinearNoise(), sf.GeometricNoise(1e-4, 20.0)
PROBS = torch.tensor([0.05, 0.1, 0.25, 0.6], dtype=torch.float64)  # of independent tokens
TEXT = states(V)[[6, 27, 45, 52]]  # four sequences of different tokens
CASES = [
    (UNIFORM, LOG_LINEAR, "exact", 32, "stratified"),
    (UNIFORM, LOG_LINEAR, "exact", 8, "stratified"),
    (UNIFORM, GEOMETRIC, "exact", 16, "antithetic"),
    (UNIFORM, GEOMETRIC, "exact", 9, "stratified"),
    (ABSORBING, LOG_LINEAR, "exact", 32, "stratified"),
    (ABSORBING, LOG_LINEAR, "normalised", 16, "antithetic"),
    (ABSORBING, LOG_LINEAR, "paper", 32, "stratified"),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_scores(graph: sf.Graph) -> Callable[[Tensor, Tensor], Tensor]:
    """ln p_t(y) - ln p_t(x_t) of every position."""

    def model(x_t: Tensor, sigma: Tensor) -> Tensor:
        kept = torch.exp(-sigma.double())[:, None]  # (R, 1)
        if graph.mask_index is None:
            noised = kept * PROBS + (1 - kept) / V
        else:
            noised = torch.cat((kept * PROBS, 1 - kept), 1)
        noised = noised.log()
        return noised[:, None] - noised.gather(-1, x_t)[..., None]

    return model


@pytest.mark.parametrize(
    ("graph", "noise", "mode", "samples", "times"), CASES,
    ids=[f"{c[0].kind}-{type(c[1]).__name__}-{c[2]}-{c[3]}-{c[4]}" for c in CASES],
)  # fmt: skip
def test_errors_cover(
    graph: sf.Graph, noise: sf.Noise, mode: str, samples: int, times: str
) -> None:
    """Of 200 estimates of four sequences, each and the four together; exact scores."""
    seeds = 200
    bound = likelihood_bound(
        exact_scores(graph), TEXT.repeat(seeds, 1), graph, noise, samples, mode, seeded(1), 2048,
        times=times,
    )  # fmt: skip
    nats, stderr = bound.nats.view(seeds, -1), bound.stderr.view(seeds, -1)
    truth = nats.mean(0)
    if mode != "paper":  # the likelihood; noise that ends near its limit leaves 1e-3
        truth = -PROBS[TEXT].log().sum(1)
        assert ((nats.mean(0) - truth).abs() < 4 * nats.std(0) / math.sqrt(seeds) + 2e-3).all()
    covered = ((nats - truth).abs() <= 1.96 * stderr).double().mean()
    assert 0.9 < covered < 0.98
    if samples == 32 and graph.kind == "uniform":  # uniform times would vary by 1.9 nats
        assert nats.std(0).mean() < 0.4
    assert bound.degrees is not None
    degrees = bound.degrees.view(seeds, -1)
    wholes = [
        LikelihoodBound(*pair, L, mode, samples, True, degrees=of)
        for *pair, of in zip(nats, stderr, degrees, strict=True)
    ]
    covered = sum(abs(w.total_nats - float(truth.sum())) <= 1.96 * w.total_stderr for w in wholes)
    assert 0.88 < covered / seeds < 0.99  # 200 estimates: +- 0.015


def test_levels_have_their_density() -> None:
    levels = Levels(1e-3, 7.0)
    place = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    sigma = levels.at(place)
    assert levels.at(torch.tensor([0.0, 1.0]).double()).tolist() == pytest.approx([1e-3, 7.0])
    # Any integral is the mean of what it integrates times the weight.
    for function, integral in (
        (torch.ones_like(sigma), 7.0 - 1e-3),
        (1 / sigma, math.log(7000)),
        (torch.exp(-sigma), math.exp(-1e-3) - math.exp(-7.0)),
    ):
        assert float((function * levels.weight(sigma)).mean()) == pytest.approx(integral, rel=1e-3)
    shares = torch.expm1(-sigma) / math.expm1(-7.0)
    assert float(levels.weight(sigma).max()) < 2 * 7 * math.log(7000)
    assert float((shares < 0.01).double().mean()) > 0.1  # small noise is not left out


@pytest.mark.parametrize("graph", [ABSORBING, UNIFORM], ids=lambda graph: graph.kind)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 4.0])
def test_noised_sequences_have_their_distribution(graph: sf.Graph, sigma: float) -> None:
    rows = 40_000
    x_0 = torch.tensor([[0, 2, 1]]).expand(rows, L)
    level = torch.full((rows,), sigma, dtype=torch.float64)
    u = torch.rand(rows, 1 + 2 * L, generator=seeded(3), dtype=torch.float64)
    x_t, left_out = noised(
        x_0, torch.ones_like(x_0).bool(), level, graph, u[:, 0], u[:, 1:].view(rows, L, 2)
    )
    step = graph.transition_matrix(sigma)
    expected: Tensor = torch.einsum("x,y,z->xyz", *(step[:, x] for x in (0, 2, 1))).flatten()
    same = int(state_number(x_0[:1], graph.dim))
    none = float(expected[same])
    assert float(left_out[0]) == pytest.approx(none if none > 0.01 else 0.0)
    if none > 0.01:
        expected[same] = 0
    counts = torch.bincount(state_number(x_t, graph.dim), minlength=graph.dim**L).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = expected[possible] / expected.sum() * rows
    common = wanted > 5
    chosen = [counts[possible][common], wanted[common]]
    rest = [rows - part.sum() for part in chosen]
    found, wanted = (torch.cat([p, r[None]]) for p, r in zip(chosen, rest, strict=True))
    statistic = float(((found - wanted).square() / wanted.clamp(min=1e-9))[wanted > 1e-6].sum())
    assert stats.chi2.sf(statistic, int((wanted > 1e-6).sum()) - 1) > 1e-4


def test_student_factor_is_the_quantile() -> None:
    degrees = torch.cat([torch.arange(1, 40, 0.25), torch.tensor([100.0, 1e4, math.inf])]).double()
    exact = torch.from_numpy(stats.t.ppf(0.975, degrees.numpy()) / stats.norm.ppf(0.975))
    torch.testing.assert_close(student_factor(degrees), exact, rtol=3e-3, atol=0)
    assert student_factor(degrees)[-1] == 1


def test_total_of_variances() -> None:
    alike = torch.full((10,), 2.0), torch.full((10,), 4.0)
    variance, degrees = total(*alike)
    assert (float(variance), float(degrees)) == (20, pytest.approx(58))  # 10 * (4 + 2) - 2
    assert float(total(*(part[:1] for part in alike))[1]) == pytest.approx(4)  # one is itself
    ruled = total(torch.tensor([100.0, 1e-3]), torch.tensor([3.0, 50.0]))
    assert float(ruled[1]) == pytest.approx(3, abs=1e-2)
    exact = total(torch.zeros(3), torch.full((3,), torch.inf))
    assert [float(part) for part in exact] == [0, math.inf]
    assert float(covering_error(*exact)) == 0


def test_an_error_of_many_sequences_is_that_of_its_variance() -> None:
    """A sum of many has many degrees of freedom, however few each of its terms has."""
    sigma = torch.full((1000,), 0.5, dtype=torch.float64)
    degrees = torch.full_like(sigma, 2.0)
    stderr = covering_error(sigma.square(), degrees)
    bound = LikelihoodBound(sigma, stderr, 4, "exact", 4, True, degrees=degrees)
    assert float(stderr[0]) == pytest.approx(0.5 * 4.3027 / 1.96, rel=4e-3)
    assert bound.total_stderr == pytest.approx(0.5 * math.sqrt(1000), rel=2e-3)
    known = LikelihoodBound(sigma, sigma, 4, "likelihood", 0, True)
    assert known.total_stderr == pytest.approx(0.5 * math.sqrt(1000))
