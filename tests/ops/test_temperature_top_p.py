"""temperature and top_p of a reverse step: distribution, same u same tokens, ties, large scores."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import HEADS, make_head
from helpers.op_cases import (
    DTYPES,
    GRAPHS,
    METHODS,
    Backend,
    Inputs,
    assert_inverse_cdf,
    assert_near,
    graph_id,
    graphs_of,
    make_inputs,
)

pytestmark = pytest.mark.operation("reverse_step")
TOKEN_FILTERS = (
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_p": 0.6},
    {"temperature": 0.7, "top_p": 0.9},
)
by_token_filter = pytest.mark.parametrize("token_filter", TOKEN_FILTERS, ids=str)
by_method = pytest.mark.parametrize("method", METHODS)
#: Cases without clamped weights: in others the weights are not proportional to the scores.
NOT_CLAMPED = [(GRAPHS[0], method) for method in METHODS] + [(GRAPHS[1], "euler")]
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)


def moving(inputs: Inputs) -> Inputs:
    """The same inputs with smaller u0, so that most rows move."""
    u = inputs.u.clone()
    u[..., 0] *= 0.2
    return replace(inputs, u=u)


def textbook(log_score: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Scores of one row (-inf at its own state) by the definition, in a loop over states."""
    scores = (log_score / temperature).exp()
    kept, reached = torch.zeros_like(scores), 0.0
    for y in scores.argsort(descending=True).tolist():
        if reached < top_p * float(scores.sum()):
            kept[y] = scores[y]
            reached += float(scores[y])
    return kept * log_score.exp().sum() / kept.sum()


@by_token_filter
@by_graph
def test_the_reference_by_the_definition(graph: sf.Graph, token_filter: dict[str, float]) -> None:
    """The probability in an Euler step is step * score of every other state."""
    inputs = make_inputs(graph, torch.float64, (2, 3))
    step = 1e-3
    with sf.use_backend("reference"):
        args = (inputs.log_score, inputs.x_t, inputs.sigma, step, graph, "euler")
        probs = sf.reverse_probs(*args, **token_filter)
    for b, i in ((0, 0), (0, 2), (1, 1)):
        own = int(inputs.x_t[b, i])
        if graph.mask_index is not None and own != graph.mask_index:
            continue
        row = inputs.log_score[b, i].clone()
        row[own] = -torch.inf
        expected = step * textbook(row, **token_filter)
        expected = expected / (1 if graph.mask_index is not None else graph.vocab_size)
        expected[own] = 1 - expected.sum()
        torch.testing.assert_close(probs[b, i], expected, rtol=1e-10, atol=1e-15)


@pytest.mark.interpreted(method=["analytic", "euler"])
@by_token_filter
@by_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("graph", graphs_of((11, 700)), ids=graph_id)
def test_distribution_and_draw(backend: Backend, graph, dtype, method, token_filter):
    # The interpreter runs two filters at the small vocabulary, one at that of several blocks.
    if backend.interpreted and token_filter in (
        TOKEN_FILTERS[:2] if graph.vocab_size == 11 else TOKEN_FILTERS[:3]
    ):
        pytest.skip("interpreted: another case runs the same code")
    shape = (2, backend.some(12, 1))
    inputs = moving(make_inputs(graph, dtype, shape, device=backend.device))
    with sf.use_backend("reference"):
        truth = sf.reverse_probs(*inputs.double().reverse(), method, **token_filter)
    probs = sf.reverse_probs(*inputs.reverse(), method, **token_filter)
    assert_near(probs, truth, 1.0, 1e-13 if dtype == torch.float64 else 5e-6)
    if method == "euler" or graph.mask_index is not None:  # no clamp: 0 where left out
        assert torch.equal(probs > 0, truth > 0)
    tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u, **token_filter)
    assert_inverse_cdf(tokens, inputs, method, **token_filter)


@pytest.mark.parametrize(("graph", "method"), NOT_CLAMPED, ids=lambda v: graph_id(v) or v)
def test_whether_a_token_moves_is_unchanged(backend: Backend, graph, method):
    """Also at the last position, because no weight is clamped."""
    inputs = make_inputs(graph, shape=(1, backend.some(400, 4)), device=backend.device)
    plain = sf.reverse_step(*inputs.reverse(), method, u=inputs.u) != inputs.x_t
    assert plain.any()
    for token_filter in TOKEN_FILTERS:
        moved = sf.reverse_step(*inputs.reverse(), method, u=inputs.u, **token_filter) != inputs.x_t
        assert torch.equal(moved, plain)


@by_graph
def test_states_equal_to_the_smallest_kept_one_are_kept(backend: Backend, graph):
    shape = (1, backend.some(300, 4))
    inputs = moving(make_inputs(graph, torch.bfloat16, shape, device=backend.device))
    steps = torch.arange(graph.dim, device=backend.device) % 4  # four values, each many times
    rows = (-0.5 * steps).bfloat16().expand_as(inputs.log_score).clone()
    inputs = replace(inputs, log_score=rows)
    for top_p, most in ((1e-6, 0), (0.5, 1), (0.999, 3)):
        tokens = sf.reverse_step(*inputs.reverse(), "euler", u=inputs.u, top_p=top_p)
        drawn = tokens[tokens != inputs.x_t] % 4
        assert set(drawn.tolist()) <= set(range(most + 1))


@pytest.mark.parametrize("offset", [-400.0, 300.0])
@by_token_filter
def test_rows_beyond_float32(backend: Backend, token_filter, offset):
    """A denoising draw depends on the differences of scores only."""
    graph = GRAPHS[0]
    inputs = moving(make_inputs(graph, shape=(1, backend.some(50, 2)), device=backend.device))
    inputs = replace(inputs, log_score=(inputs.log_score * 8).round() / 8)
    near = sf.reverse_step(*inputs.reverse(), "denoise", u=inputs.u, **token_filter)
    far = replace(inputs, log_score=inputs.log_score + offset)
    assert torch.equal(sf.reverse_step(*far.reverse(), "denoise", u=inputs.u, **token_filter), near)


@by_method
@pytest.mark.parametrize("kind", ["random", "equal", "some -inf", "spread", "far up", "far down"])
@pytest.mark.parametrize("graph", graphs_of((2, 600)), ids=graph_id)
def test_any_temperature_and_top_p_on_any_row(backend: Backend, graph, kind, method):
    if backend.interpreted and (
        graph.vocab_size > 2 or method == "euler" or kind not in ("random", "far down")
    ):
        pytest.skip("interpreted: another case runs the same code")
    inputs = moving(make_inputs(graph, shape=(1, backend.some(12, 2)), device=backend.device))
    scores = inputs.log_score * {"equal": 0, "spread": 100}.get(kind, 1)
    scores += {"far up": 200, "far down": -300}.get(kind, 0)
    if kind == "some -inf":
        scores[:, :, 1::3] = -torch.inf
    inputs = replace(inputs, log_score=scores)
    every = itertools.product((1e-300, 1e-40, 1e-3, 1e4, 1e40, 1e300), (1e-12, 1 - 1e-9, 1.0))
    for temperature, top_p in ((1e-40, 1.0), (1e40, 1e-12)) if backend.interpreted else every:
        token_filter = {"temperature": temperature, "top_p": top_p}
        tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u, **token_filter)
        assert_inverse_cdf(tokens, inputs, method, **token_filter)


def test_a_row_without_a_distribution(backend: Backend):
    """An error on the CPU. On a GPU the token stays, and a NaN does not change other rows."""
    inputs = moving(make_inputs(GRAPHS[0], shape=(1, 3), device=backend.device))
    masked = replace(inputs, x_t=torch.full_like(inputs.x_t, GRAPHS[0].vocab_size))
    for bad in (-torch.inf, torch.inf, torch.nan):
        scores = inputs.log_score.clone()
        scores[0, 1] = bad
        row = replace(masked, log_score=scores)
        if backend.raises:
            with pytest.raises(ValueError, match=r"position \(0, 1\) gives no distribution"):
                sf.reverse_step(*row.reverse(), "denoise", u=row.u, temperature=0.7, top_p=0.9)
            continue
        tokens = sf.reverse_step(*row.reverse(), "denoise", u=row.u, temperature=0.7, top_p=0.9)
        assert (tokens == GRAPHS[0].vocab_size).tolist() == [[False, True, False]]


def test_a_low_temperature_draws_the_largest_score(backend: Backend):
    graph = GRAPHS[0]
    inputs = make_inputs(graph, shape=(1, backend.some(50, 2)), device=backend.device)
    for token_filter in ({"temperature": 1e-3}, {"temperature": 1e-40}, {"top_p": 1e-9}):
        drawn = sf.reverse_step(*inputs.reverse(), "denoise", u=inputs.u, **token_filter)
        largest = inputs.log_score[..., : graph.vocab_size].argmax(-1)
        assert torch.equal(drawn, torch.where(inputs.x_t == graph.mask_index, largest, inputs.x_t))


@pytest.mark.interpreted_head(method=("analytic", "euler"), token_filter=(TOKEN_FILTERS[-1],))
@by_token_filter
@by_method
@pytest.mark.usefixtures("has_heads")
@pytest.mark.parametrize(("graph", "scaled"), HEADS, ids=lambda v: graph_id(v) or str(v))
def test_from_hidden_states(backend: Backend, graph, scaled, method, token_filter):
    head = make_head(graph, scaled, torch.float32, (2, backend.some(20, 2)), device=backend.device)
    head = replace(head, inputs=moving(head.inputs))
    exact = replace(head.inputs, log_score=head.double().log_score())
    assert_inverse_cdf(head.step(method, **token_filter), exact, method, **token_filter)


def test_bad_arguments() -> None:
    inputs = make_inputs(GRAPHS[0])
    for token_filter, message in (
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        ({"top_p": 1.5}, "top_p must lie in"),
    ):
        for op in (sf.reverse_step, sf.reverse_probs):
            with pytest.raises(ValueError, match=message):
                op(*inputs.reverse(), "analytic", **token_filter)
    with pytest.raises(TypeError, match="top_p must be a number, got str"):
        sf.reverse_step(*inputs.reverse(), "analytic", top_p="0.9")  # type: ignore[arg-type]
    leaf = inputs.log_score.requires_grad_()
    probs = sf.reverse_probs(leaf, *inputs.reverse()[1:], "analytic", temperature=2.0)
    with pytest.raises(RuntimeError, match="temperature 1 and top_p 1 only"):
        probs.sum().backward()
