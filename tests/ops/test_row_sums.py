"""row_sums: its definition, gradients, numerics, layouts, errors, and as an opaque node."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import DTYPES, GRAPHS, Backend, Inputs, graph_id, graphs_of, make_inputs
from sedd_fast.backends import registry
from sedd_fast.names import TERMS
from sedd_fast.ops._arguments import process

#: Warnings of numpy in Triton's interpreter about intended overflows.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
    pytest.mark.operation("row_sums"),
]
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
by_term = pytest.mark.parametrize("term", TERMS)


@pytest.fixture
def backend(backend: Backend) -> Backend:
    """The backends that have the operation."""
    if not hasattr(registry.module(backend.name), "row_sums"):
        pytest.skip(f"{backend} has no row_sums")
    return backend


def coefficients(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """a and b, (B, L) float64, positive where a logarithm needs it; one a is 0."""
    a = inputs.row_weight.clone()
    a[0, 2] = 0.0
    return a, inputs.row_weight.flip(0).clone()


def arguments(inputs: Inputs, term: str) -> tuple[Any, ...]:
    return inputs.log_score, inputs.x_t, inputs.x_0, inputs.graph, term


def definition(inputs: Inputs, term: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A loop over positions and states, in float64 scalars."""
    graph = inputs.graph
    total, picked = torch.zeros_like(a), torch.zeros_like(a)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            x_t, x_0 = int(inputs.x_t[i, j]), int(inputs.x_0[i, j])
            if a[i, j] == 0 or (graph.mask_index is not None and x_t != graph.mask_index):
                continue
            row = torch.cat((inputs.log_score[i, j, :x_t], inputs.log_score[i, j, x_t + 1 :]))
            z = a[i, j] * row.double().exp() + b[i, j]
            total[i, j] = {"affine": z, "square": z**2, "log": torch.log(z)}[term].sum()
            picked[i, j] = 0.0 if x_0 == x_t else inputs.log_score[i, j, x_0].double()
    return total, picked


@pytest.mark.interpreted(graph=graphs_of((2, 2300)))
@by_term
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("graph", graphs_of((2, 3, 17, 2300)), ids=graph_id)
def test_the_definition(backend: Backend, graph: sf.Graph, dtype: torch.dtype, term: str):
    shape = (3, backend.some(8, 3))
    inputs = make_inputs(graph, dtype, shape, device=backend.device)
    a, b = coefficients(inputs)
    total, picked = sf.row_sums(*arguments(inputs, term), a, b)
    assert total.dtype == picked.dtype == torch.float64
    expected, at_x_0 = definition(inputs, term, a, b)
    exact = dtype == torch.float64 or backend.name == "reference"
    tolerance = 1e-12 if exact else 2e-6
    torch.testing.assert_close(total, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(picked, at_x_0)


@pytest.mark.interpreted(graph=graphs_of((3, 600)))
@by_term
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("graph", graphs_of((3, 11, 600)), ids=graph_id)
def test_gradients_are_those_of_the_definition(backend: Backend, graph, dtype, term):
    shape = (3, backend.some(8, 3))
    inputs = make_inputs(graph, dtype, shape, device=backend.device)
    a, b = coefficients(inputs)

    def gradients(function: Any, leaf: Tensor) -> tuple[Tensor, ...]:
        shift = b.clone().requires_grad_()
        total, picked = function(replace(inputs, log_score=leaf.requires_grad_()), shift)
        loss = (total * inputs.row_weight).sum() + (picked * inputs.u[..., 0]).sum()
        return torch.autograd.grad(loss, (leaf, shift))

    got = gradients(lambda i, s: sf.row_sums(*arguments(i, term), a, s), inputs.log_score.clone())
    expected = gradients(
        lambda i, s: definition(i, term, a, s), inputs.log_score.double().detach().clone()
    )
    assert got[0].dtype == dtype
    tolerance = max(torch.finfo(dtype).eps * 4, 1e-12)
    # b's own gradient is a sum over the row: of float32 terms in C++.
    for one, other, little in zip(got, expected, (tolerance, max(tolerance, 2e-6)), strict=True):
        rounded = other.to(one.dtype).double()  # beyond 65504 a float16 is infinite
        torch.testing.assert_close(one.double(), rounded, rtol=little, atol=little)


@by_graph
def test_rows_of_no_weight_are_not_read(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    a = (inputs.row_weight > 1).double()
    unread = a == 0
    if graph.mask_index is not None:
        unread |= inputs.x_t != graph.mask_index
    assert 0 < unread.sum() < unread.numel()
    log_score = inputs.log_score.masked_fill(unread[..., None], torch.nan).requires_grad_()
    total, picked = sf.row_sums(*arguments(replace(inputs, log_score=log_score), "square"), a)
    assert not total[unread].any()
    assert not picked[unread].any()
    (total + picked).sum().backward()
    assert not log_score.grad[unread].any()
    assert bool(log_score.grad[~unread].isfinite().all())


@by_term
def test_defaults_and_the_score_at_x_t(backend: Backend, term):
    inputs = make_inputs(sf.Uniform(11), backend.widest, device=backend.device)
    ones, zeros = torch.ones_like(inputs.row_weight), torch.zeros_like(inputs.row_weight)
    total, _ = sf.row_sums(*arguments(inputs, term))
    other = inputs.log_score.scatter(-1, inputs.x_t[..., None], torch.nan)
    again, _ = sf.row_sums(*arguments(replace(inputs, log_score=other), term), ones, zeros)
    assert torch.equal(total, again)


@by_term
def test_scores_beyond_float32(backend: Backend, term):
    """exp or its square overflows, or the logarithm's argument vanishes in float32."""
    inputs = make_inputs(sf.Uniform(40), shape=(1, 2), device=backend.device)
    for score in (60.0, 95.0, 300.0, -120.0):
        moved = replace(inputs, log_score=torch.full_like(inputs.log_score, score))
        total, _ = sf.row_sums(*arguments(moved, term))
        z = torch.tensor(score, dtype=torch.float64, device=backend.device).exp()
        expected = 39 * {"affine": z, "square": z * z, "log": z.log()}[term]
        if term != "square" or score > 0:
            torch.testing.assert_close(total, expected.expand(total.shape), rtol=1e-6, atol=0)
        leaf = moved.log_score.requires_grad_()
        sf.row_sums(*arguments(replace(moved, log_score=leaf), "log"))[0].sum().backward()
        others = torch.ones_like(leaf).scatter(-1, inputs.x_t[..., None], 0.0)
        torch.testing.assert_close(leaf.grad, others)  # d ln(exp(l)) / dl = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_logarithm(backend: Backend, dtype):
    """ln(a e^l + b) over the range of the dtype, one state a row, and where it is undefined."""
    low, high = (-300, 300) if dtype == torch.float64 else (-29, 38)
    b = torch.logspace(low, high, backend.some(4001, 41), dtype=torch.float64)
    near_one = 1 + torch.linspace(-1e-3, 1e-3, backend.some(1000, 10), dtype=torch.float64)
    b = torch.cat((b, near_one)).to(dtype).double()[None].to(backend.device)  # (1, N)
    log_score = torch.full((*b.shape, 2), -torch.inf, dtype=dtype, device=backend.device)
    x = torch.zeros(b.shape, dtype=torch.int64, device=backend.device)

    def logarithms(of: Tensor) -> Tensor:
        n = of.shape[1]
        rows = (log_score[:, :n], x[:, :n], x[:, :n], sf.Uniform(2), "log")
        return sf.row_sums(*rows, torch.ones_like(of), of)[0]

    little = 3e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(logarithms(b), b.log(), rtol=little, atol=little)
    odd = b.new_tensor([[0.0, -1.0, torch.inf, torch.nan]])
    expected = b.new_tensor([[-torch.inf, torch.nan, torch.inf, torch.nan]])
    torch.testing.assert_close(logarithms(odd), expected, equal_nan=True)


@by_term
@by_graph
def test_strided_scores(backend: Backend, graph: sf.Graph, term):
    inputs = make_inputs(graph, device=backend.device)
    a, b = coefficients(inputs)
    expected, at_x_0 = sf.row_sums(*arguments(inputs, term), a, b)
    for strided in (
        inputs.log_score.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.log_score.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        leaf = strided.detach().requires_grad_()
        total, picked = sf.row_sums(*arguments(replace(inputs, log_score=leaf), term), a, b)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(picked, at_x_0)
        total.sum().backward()
        assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_an_empty_batch(backend: Backend, shape):
    tokens = torch.zeros(shape, dtype=torch.int64, device=backend.device)
    leaf = torch.zeros(*shape, 5, device=backend.device, requires_grad=True)
    total, _ = sf.row_sums(leaf, tokens, tokens, sf.Uniform(5), "affine")
    total.sum().backward()
    assert total.shape == shape
    assert leaf.grad.shape == (*shape, 5)


@by_term
@by_graph
def test_gradcheck(backend: Backend, graph: sf.Graph, term):
    if backend.widest != torch.float64:
        pytest.skip(f"{backend} has no float64")
    inputs = make_inputs(graph, torch.float64, (2, 3), device=backend.device)
    a, b = inputs.row_weight, inputs.row_weight.flip(0).clone().requires_grad_()

    def sums(log_score: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return sf.row_sums(log_score, inputs.x_t, inputs.x_0, graph, term, a, shift)

    assert torch.autograd.gradcheck(sums, (inputs.log_score.requires_grad_(), b))


def test_a_second_derivative_is_refused(backend: Backend):
    inputs = make_inputs(GRAPHS[0], backend.widest, device=backend.device)
    leaf = inputs.log_score.requires_grad_()
    total, _ = sf.row_sums(*arguments(inputs, "square"))
    (first,) = torch.autograd.grad(total.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="row_sums has no second derivative"):
        first.sum().backward()


@pytest.mark.interpreted(dtype=[torch.bfloat16])
@by_graph
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(backend: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, (2, 3), device=backend.device)
    a, b = inputs.row_weight, inputs.row_weight.flip(0).clone().requires_grad_()
    settings = ("log", *process(graph))
    leaf = inputs.log_score.clone().requires_grad_()
    forward = (leaf, inputs.x_t, inputs.x_0, a, b, *settings)
    checks = {"test_utils": backend.opchecks}
    torch.library.opcheck(torch.ops.sedd_fast.row_sums.default, forward, **checks)
    *_, code = torch.ops.sedd_fast.row_sums(*forward)
    tensors = (a, b.detach(), inputs.log_score, inputs.x_t, inputs.x_0, a, b.detach())
    torch.library.opcheck(
        torch.ops.sedd_fast.row_sums_backward.default, (*tensors, *settings, code), **checks
    )


@pytest.mark.not_interpreted
@by_graph
def test_compiled_equals_eager(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    torch.compiler.reset()

    def loss(log_score: Tensor) -> Tensor:
        total, picked = sf.row_sums(
            torch.tanh(log_score), inputs.x_t, inputs.x_0, graph, "affine", inputs.row_weight
        )
        return (torch.log1p(total) - picked).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [inputs.log_score.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((loss, compiled), leaves, strict=True):
        function(leaf).backward()
    torch.testing.assert_close(*(leaf.grad for leaf in leaves))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"term": "cube"}, ValueError, "term must be one of 'affine', 'square', 'log', got 'cube'"),
        ({"a": torch.ones(3)}, ValueError, r"a must have shape \(2, 3\)"),
        ({"a": torch.ones(2, 3, requires_grad=True)}, ValueError, "a requires a gradient"),
        ({"b": 1.0}, TypeError, "b must be a torch.Tensor, got float"),
        ({"b": torch.ones(2)}, ValueError, r"b must have shape \(2, 3\)"),
        ({"x_0": torch.zeros(2, 3)}, TypeError, "x_0 must be int64"),
        ({"x_0": torch.full((2, 3), 5)}, ValueError, "x_0 holds the mask"),
        ({"x_0": torch.full((2, 3), -1)}, ValueError, "x_0 must hold tokens 0 .. 4, got -1"),
        ({"x_t": torch.full((2, 3), 6)}, ValueError, "x_t must hold states 0 .. 5, got 6"),
        ({"log_score": torch.zeros(2, 3, 5)}, ValueError, "log_score has 5 states"),
    ],
)
def test_bad_arguments(backend: Backend, change, error, words):
    good = {
        "log_score": torch.zeros(2, 3, 6),
        "x_t": torch.full((2, 3), 5),
        "x_0": torch.zeros(2, 3, dtype=torch.int64),
        "graph": sf.Absorbing(5),
        "term": "affine",
    }
    if not backend.raises:
        pytest.skip("values are not checked on a GPU")
    with pytest.raises(error, match=words):
        sf.row_sums(**{**good, **change})


def test_an_export_with_a_constant_b():
    x_t = torch.tensor([[5, 1]])
    b = torch.rand(1, 2)

    class Sums(torch.nn.Module):
        def forward(self, log_score):
            return sf.row_sums(log_score, x_t, x_t % 5, sf.Absorbing(5), "log", b=b)[0]

    scores = torch.randn(1, 2, 6)
    exported = torch.export.export(Sums(), (scores,))
    torch.testing.assert_close(exported.module()(scores), Sums()(scores))
