"""Chi-square tests of the distributions of draws, on small vocabularies, rare tokens included.

Many draws come from one row of scores (a stride-0 tensor), so only the uniforms need memory. A test
would fail by chance once in a million seeds; the seed is fixed.
"""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    GRAPHS,
    METHODS,
    Backend,
    assert_distribution,
    chi_square_tail,
    graph_id,
    graphs_of,
    make_inputs,
)
from sedd_fast.backends import cpp, reference
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.ops._arguments import process

pytestmark = pytest.mark.operation("reverse_step")
DRAWS = 200_000
#: Fewer for the reference, which makes (draws, dim) tensors in float64.
REFERENCE_DRAWS = 50_000
UNLIKELY = 1e-6
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
by_method = pytest.mark.parametrize("method", METHODS)


def number(backend: Backend) -> int:
    """How many draws a test makes."""
    if backend.interpreted:
        pytest.skip("a draw takes milliseconds; the tests of the inverse CDF are more exact")
    return REFERENCE_DRAWS if backend.name == "reference" else DRAWS


def uniforms(draws: int, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, draws, 2, dtype=torch.float64, generator=generator).to(device)


def spread_evenly(draws: int, device: str) -> Tensor:
    """The middles of ``draws`` equal parts of [0, 1)."""
    return (torch.arange(draws, dtype=torch.float64, device=device) + 0.5) / draws


def draw(row: Tensor, token: int, graph: sf.Graph, method: str, u: Tensor) -> Tensor:
    """Draws from one row (dim,) of scores at sigma 0.7, dsigma 0.3."""
    draws = u.shape[1]
    x_t = torch.full((1, draws), token, device=row.device)
    return sf.reverse_step(row.expand(1, draws, -1), x_t, 0.7, 0.3, graph, method, u=u)


def distribution(row: Tensor, token: int, graph: sf.Graph, method: str) -> Tensor:
    """The float64 distribution that :func:`draw` should have: (dim,)."""
    x_t = torch.full((1, 1), token, device=row.device)
    with sf.use_backend("reference"):
        return sf.reverse_probs(row.double()[None, None], x_t, 0.7, 0.3, graph, method)[0, 0]


@by_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("graph", graphs_of((3, 11, 40)), ids=graph_id)
def test_reverse_step(backend: Backend, graph: sf.Graph, dtype, method):
    token = graph.mask_index or 1
    row = make_inputs(graph, dtype, (1, 1), device=backend.device).log_score[0, 0].clone()
    row -= row.logsumexp(0)  # so that Euler's step stays below 1
    row[token] = 0
    u = uniforms(number(backend), backend.device)
    assert_distribution(draw(row, token, graph, method, u), distribution(row, token, graph, method))


@by_graph
@by_method
def test_reverse_step_across_chunks(backend: Backend, graph: sf.Graph, method):
    graph = type(graph)(1300)
    token = graph.mask_index or 700
    row = torch.full((graph.dim,), -torch.inf, device=backend.device)
    scores = torch.tensor([-3.0, -2, -2.5, -2, -3, -1], device=backend.device)
    row[[0, 511, 512, 1023, 1024, 1299]] = scores
    row[token] = 0
    u = uniforms(number(backend) // 20, backend.device)
    assert_distribution(draw(row, token, graph, method, u), distribution(row, token, graph, method))


#: (vocabulary, state with nearly all the weight, rare state): the ends of a row and of a chunk, and
#: pairs 16 apart, which share a lane of a float32 vector.
RARE = (
    (12, 0, 11),
    (12, 5, 0),
    (40, 15, 31),
    (40, 8, 39),
    (512, 0, 511),
    (512, 495, 511),
    (600, 100, 511),
    (600, 512, 599),
    (600, 3, 300),
)


@pytest.mark.parametrize("probability", [1e-6, 1e-7, 3e-8])
@pytest.mark.parametrize(("vocabulary", "common", "rare"), RARE)
def test_the_frequency_of_a_rare_token(backend: Backend, vocabulary, common, rare, probability):
    """The values of u1 are spread evenly over ten times the width of the token's interval."""
    graph = sf.Absorbing(vocabulary)
    row = torch.full((graph.dim,), -40.0, device=backend.device)
    row[common], row[rare] = 0.0, float(torch.tensor(probability).log())
    weights = row.double()[:vocabulary].exp()
    cdf = weights.cumsum(0) / weights.sum()
    p = float(weights[rare] / weights.sum())
    low = max(float(cdf[rare]) - 5.5 * p, 0.0)
    width = min(10 * p, 1 - low - 2**-53)
    draws = number(backend) // 20
    u = uniforms(draws, backend.device)
    u[..., 1] = low + spread_evenly(draws, backend.device) * width
    tokens = draw(row, graph.mask_index, graph, "denoise", u)
    share = float((tokens == rare).double().mean())
    begin, end = max(float(cdf[rare]) - p, low), min(float(cdf[rare]), low + width)
    assert share == pytest.approx((end - begin) / width, rel=0.02)


@pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")
def test_rare_tokens_in_ten_million_draws():
    """Four tokens have a probability near 1e-6 or 1e-7; the kernel draws its own uniforms."""
    graph = sf.Absorbing(12)
    row = torch.tensor([0.3, 1e-6, 1e-7, 0.2, 1e-6, 0, 0.1, 0.4, 0, 2e-7, 0, 3e-6, 1]).log()
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(13, dtype=torch.int64)
    x_t = torch.full((1, 1_000_000), 12)
    for _ in range(10):
        with sf.use_backend("cpp"):
            tokens = sf.reverse_step(
                row.expand(1, 1_000_000, -1), x_t, 0.7, None, graph, "denoise", generator
            )
        counts += torch.bincount(tokens.flatten(), minlength=13)
    probs = distribution(row, 12, graph, "denoise") * 10_000_000
    assert not counts[probs == 0].any()
    kept = probs > 0
    statistic = float(((counts - probs) ** 2 / probs)[kept].sum())
    assert chi_square_tail(statistic, int(kept.sum()) - 1) > UNLIKELY, counts.tolist()


@pytest.mark.parametrize("dsigma", [1e-7, 1e-3])
@pytest.mark.parametrize("method", ["analytic", "euler"])
@by_graph
def test_the_probability_that_a_token_moves(backend: Backend, graph: sf.Graph, method, dsigma):
    """A small step moves a token with a probability that float32 uniforms could not resolve."""
    token = graph.mask_index or 1
    row = make_inputs(graph, shape=(1, 1), spread=0.5, device=backend.device).log_score[0, 0]
    row = row.clone()
    row[token] = 0
    i = torch.full((1, 1), token, device=backend.device)
    args = (0.7, dsigma, graph, method)
    noise = (torch.tensor([v], dtype=torch.float64, device=row.device) for v in args[:2])
    reverse = ReverseInputs(i, *noise, None, *process(graph), method)
    weights, stay = reference.reverse_weights(row.double()[None, None], reverse)
    p = float(weights.sum() / (weights.sum() + stay))
    draws = min(20_000, number(backend))
    u = uniforms(draws, backend.device)
    u[..., 0] = spread_evenly(draws, backend.device) * 10 * p
    x_t = i.expand(1, draws)
    moved = sf.reverse_step(row.expand(1, draws, -1), x_t, *args, u=u) != x_t
    assert float(moved.double().mean()) == pytest.approx(0.1, rel=1e-3)


@by_graph
@pytest.mark.parametrize("sigma", [1e-3, 0.5, 5.0])
def test_sample_transition(backend: Backend, graph: sf.Graph, sigma):
    draws = backend.some(DRAWS, 20_000)
    x_0 = torch.full((1, draws), 4, device=backend.device)
    tokens = sf.sample_transition(x_0, sigma, graph, u=uniforms(draws, backend.device))
    assert_distribution(tokens, graph.transition_matrix(sigma)[:, 4])


@by_graph
def test_the_default_generator_draws_from_the_same_distribution(backend: Backend, graph: sf.Graph):
    torch.manual_seed(0)
    x_0 = torch.full((1, backend.some(DRAWS, 20_000)), 4, device=backend.device)
    tokens = sf.sample_transition(x_0, 0.5, graph)
    assert_distribution(tokens, graph.transition_matrix(0.5)[:, 4])
