"""temperature and top_p: which token a position jumps to, not when."""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.sampling.tau_leap import total_rate
from sedd_fast.sampling.token_filter import filter_scores

V, COUNT = 6, 30_000
NOISE = sf.LogLinearNoise()
GRAPHS = [sf.Absorbing(V), sf.Uniform(V)]
each_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.kind)
SHARES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_shares(tokens: Tensor, shares: Tensor) -> None:
    counts = torch.bincount(tokens.flatten(), minlength=len(shares)).double()[: len(shares)]
    expected = counts.sum() * shares
    assert counts[shares == 0].sum() == 0
    assert ((counts - expected).square() / expected)[shares > 0].sum() < 30  # 5 degrees: p = 1e-5


def network(x: Tensor, sigma: Tensor) -> Tensor:
    """SHARES at every position, normalised: s = p / E."""
    log_score = torch.cat((SHARES.log(), torch.zeros(1, dtype=torch.float64)))
    return log_score.expand(*x.shape, V + 1) - torch.log(torch.expm1(sigma.double()))[:, None, None]


def tempered(temperature: float) -> Tensor:
    return torch.softmax(SHARES.log() / temperature, 0)


@pytest.mark.parametrize("method", ["analytic", "euler", "tau_leaping", "theta_trapezoidal", "hit"])
def test_every_sampler_draws_the_new_shares(method: str) -> None:
    """Positions are independent here, so the shares of the result are those of a draw."""
    shape = (COUNT // 10, 10)
    options = {"steps": 4, "method": method, "generator": seeded(1)}
    warm = sf.sample(network, GRAPHS[0], NOISE, shape, temperature=2.0, **options)
    assert_shares(warm, tempered(2.0))
    kept = SHARES * torch.tensor([1, 1, 1, 0, 0, 0])  # 0.4 + 0.3 < 0.8 <= 0.4 + 0.3 + 0.15
    assert_shares(
        sf.sample(network, GRAPHS[0], NOISE, shape, top_p=0.8, **options), kept / kept.sum()
    )


def test_temperature_comes_before_top_p() -> None:
    cold = tempered(0.5)  # 0.57, 0.32, ...: the first two reach 0.8
    tokens = sf.sample(
        network, GRAPHS[0], NOISE, (COUNT // 10, 10), 4, temperature=0.5, top_p=0.8,
        generator=seeded(2),
    )  # fmt: skip
    kept = cold * torch.tensor([1, 1, 0, 0, 0, 0])
    assert_shares(tokens, kept / kept.sum())


@pytest.mark.parametrize("method", ["analytic", "euler", "tau_leaping"])
def test_the_time_of_a_jump_stays(method: str) -> None:
    """With one seed the same positions are masked after every step, whatever the filter."""

    def masks(**token_filter: float) -> list[Tensor]:
        seen: list[Tensor] = []
        sf.sample(
            network, GRAPHS[0], NOISE, (20, 10), 6, method, generator=seeded(3),
            callback=lambda step: seen.append(step.tokens == V), **token_filter,
        )  # fmt: skip
        return seen

    plain = masks()
    for token_filter in ({"temperature": 3.0}, {"top_p": 0.3}):
        assert all(torch.equal(*pair) for pair in zip(plain, masks(**token_filter), strict=True))


@each_graph
@pytest.mark.parametrize(("temperature", "top_p"), [(0.3, 1.0), (4.0, 1.0), (1.0, 0.5), (0.7, 0.9)])
def test_the_total_is_kept_and_the_own_state_does_not_count(
    graph: sf.Graph, temperature: float, top_p: float
) -> None:
    log_score = torch.randn(3, 4, graph.dim, generator=seeded(4), dtype=torch.float64) * 2
    x = torch.randint(graph.dim, (3, 4), generator=seeded(5))
    log_score.scatter_(-1, x[..., None], 50.0)  # would be the largest by far
    got = filter_scores(log_score, x, graph, temperature, top_p)
    rate = total_rate(log_score, x, graph)
    torch.testing.assert_close(total_rate(got, x, graph), rate, rtol=1e-12, atol=0)
    if graph.mask_index is not None:
        assert torch.equal(got[x < V], log_score[x < V])


def test_half_precision_and_exact_ties() -> None:
    graph, x = GRAPHS[0], torch.full((1, 1), V)
    row = torch.tensor([0.5, 0.5, 0.5, 0.5, 0, 0, 1]).log2().bfloat16()[None, None]
    got = filter_scores(row, x, graph, top_p=0.49)
    assert got.dtype == torch.float32
    assert got.isfinite().squeeze().tolist() == [True] * 4 + [False] * 3  # all that are equal
    assert filter_scores(row, x, graph) is row
    tiny = filter_scores(row, x, graph, top_p=1e-9)
    assert tiny.isfinite().sum() == 4  # the largest always stay


def test_nothing_masked_is_nothing_to_do() -> None:
    x, log_score = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, V + 1)
    assert torch.equal(filter_scores(log_score, x, GRAPHS[0], temperature=0.5), log_score)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_is_checked(value: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        sf.sample(network, GRAPHS[0], NOISE, (1, 1), 2, temperature=value)


@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_top_p_is_checked(value: float) -> None:
    with pytest.raises(ValueError, match="top_p must lie in"):
        sf.sample(network, GRAPHS[0], NOISE, (1, 1), 2, top_p=value)
