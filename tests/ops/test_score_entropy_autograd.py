"""score_entropy under autograd: strides, upstream gradients, rows that are not read."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    DTYPES,
    GRAPHS,
    Backend,
    graph_id,
    loss_and_gradient,
    make_inputs,
)
from sedd_fast.ops._arguments import process

pytestmark = pytest.mark.operation("score_entropy")
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
one_dtype = pytest.mark.interpreted(dtype=[torch.float32])


def laid_out(log_score: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    batch, length, dim = log_score.shape
    if layout == "transposed batch":
        return log_score.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "transposed states":
        return log_score.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "padded rows":
        padded = log_score.new_full((batch, length, dim + 5), torch.nan)
        padded[..., :dim] = log_score
        return padded[..., :dim]
    if layout == "every other state":
        padded = log_score.new_full((batch, length, 2 * dim), torch.nan)
        padded[..., ::2] = log_score
        return padded[..., ::2]
    return log_score[:1].contiguous().expand(batch, -1, -1)  # "stride-0 batch"


LAYOUTS = (
    "transposed batch",
    "transposed states",
    "padded rows",
    "every other state",
    "stride-0 batch",
)


@one_dtype
@by_dtype
@by_graph
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_log_score(backend: Backend, graph: sf.Graph, layout, dtype):
    inputs = make_inputs(graph, dtype, (3, backend.some(8, 2)), device=backend.device)
    strided = replace(inputs, log_score=laid_out(inputs.log_score, layout))
    dense = replace(inputs, log_score=strided.log_score.contiguous())
    assert not strided.log_score.is_contiguous()
    for got, expected in zip(loss_and_gradient(strided), loss_and_gradient(dense), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    got_pair = sf.score_entropy_with_grad(*strided.entropy())
    for got, expected in zip(got_pair, sf.score_entropy_with_grad(*dense.entropy()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@by_graph
def test_layouts_of_everything_else(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, backend.widest, device=backend.device)
    expected, _ = sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "none")
    other = replace(
        inputs,
        x_t=inputs.x_t.t().contiguous().t(),
        x_0=torch.stack([inputs.x_0, inputs.x_0], -1)[..., 1],
        row_weight=inputs.row_weight.t().contiguous().t(),
        sigma=torch.stack([inputs.sigma, inputs.sigma], -1)[:, 0],
    )
    got, _ = sf.score_entropy_with_grad(*other.entropy(), other.row_weight, "none")
    assert torch.equal(got, expected)


@by_graph
def test_upstream_gradients(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, backend.widest, device=backend.device)
    _, ones = loss_and_gradient(inputs)
    upstream = torch.tensor(2.0, dtype=backend.widest, device=backend.device)
    _, twice = loss_and_gradient(inputs, upstream.expand(inputs.x_t.shape))  # stride 0
    torch.testing.assert_close(twice, 2 * ones)
    weight = inputs.row_weight.to(backend.widest)
    _, each = loss_and_gradient(inputs, weight.t().contiguous().t())
    torch.testing.assert_close(each, weight[..., None] * ones)


@by_graph
def test_two_backward_calls_through_a_retained_graph_add_up(backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    leaf = inputs.log_score.requires_grad_()
    loss = sf.score_entropy(*inputs.entropy(), reduction="sum")
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward()
    assert torch.equal(leaf.grad, 2 * once)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
@by_graph
def test_an_empty_batch(backend: Backend, graph: sf.Graph, shape):
    inputs = make_inputs(graph, device=backend.device)
    empty = replace(
        inputs,
        **{
            name: getattr(inputs, name)[: shape[0], : shape[1]]
            for name in ("log_score", "x_t", "x_0", "row_weight")
        },
        sigma=inputs.sigma[: shape[0]],
    )
    loss, gradient = loss_and_gradient(empty)
    assert loss.shape == shape
    assert gradient.shape == (*shape, graph.dim)
    total, once = sf.score_entropy_with_grad(*empty.entropy(), empty.row_weight)
    assert float(total) == 0
    assert once.shape == gradient.shape


@one_dtype
@by_dtype
@by_graph
def test_rows_without_weight_are_never_read(backend: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, device=backend.device)
    weight = inputs.row_weight * (torch.arange(8, device=backend.device) % 3 > 0)
    log_score = inputs.log_score.masked_fill((weight == 0)[..., None], torch.nan)
    leaf = log_score.requires_grad_()
    loss = sf.score_entropy(leaf, *inputs.entropy()[1:], weight)
    loss.sum().backward()
    once, grad = sf.score_entropy_with_grad(leaf, *inputs.entropy()[1:], weight, "none")
    for value in (loss, once, leaf.grad, grad):
        assert torch.isfinite(value).all()
        assert not value[weight == 0].any()
    expected = sf.score_entropy(*inputs.entropy(), inputs.row_weight)
    assert torch.equal(loss[weight > 0], expected[weight > 0])


@one_dtype
@by_dtype
def test_unmasked_rows_are_never_read(backend: Backend, dtype):
    graph = sf.Absorbing(11)
    inputs = make_inputs(graph, dtype, device=backend.device)
    unmasked = inputs.x_t != graph.mask_index
    spoilt = replace(inputs, log_score=inputs.log_score.masked_fill(unmasked[..., None], torch.nan))
    loss, gradient = loss_and_gradient(spoilt)
    expected_loss, expected_gradient = loss_and_gradient(inputs)
    assert not loss[unmasked].any()
    assert not gradient[unmasked].any()
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)


@by_graph
def test_the_score_at_x_t_is_not_read(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    spoilt = inputs.log_score.scatter(-1, inputs.x_t[..., None], torch.nan)
    loss, gradient = loss_and_gradient(replace(inputs, log_score=spoilt))
    expected_loss, expected_gradient = loss_and_gradient(inputs)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert not gradient.gather(-1, inputs.x_t[..., None]).any()


@by_graph
def test_double_backward_is_refused(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, backend.widest, device=backend.device)
    leaf = inputs.log_score.requires_grad_()
    loss = sf.score_entropy(*inputs.entropy(), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative.*plain torch"):
        gradient.square().sum().backward()


@by_graph
def test_score_entropy_with_grad_is_detached(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    leaf = inputs.log_score.requires_grad_()
    loss, grad = sf.score_entropy_with_grad(*inputs.entropy())
    assert not loss.requires_grad
    assert not grad.requires_grad
    leaf.backward(grad)
    assert torch.equal(leaf.grad, grad)
    op = torch.ops.sedd_fast.score_entropy_with_grad
    each, _ = op(*inputs.entropy()[:4], None, *process(graph), False, 1.0)
    with pytest.raises(RuntimeError, match=r"returns its gradient itself"):
        each.sum().backward()


def test_a_loss_scaler_brings_float16_gradients_into_range(backend: Backend):
    graph = sf.Absorbing(11)
    inputs = make_inputs(graph, torch.float16, device=backend.device)
    tiny, scale = torch.full_like(inputs.row_weight, 1e-9), 2.0**24
    leaf = inputs.log_score.requires_grad_()
    (sf.score_entropy(*inputs.entropy(), tiny, "sum") * scale).backward()
    _, once = sf.score_entropy_with_grad(*inputs.entropy(), tiny)
    with sf.use_backend("reference"):
        _, ones = loss_and_gradient(inputs.double())
    assert leaf.grad.dtype == torch.float16
    assert once.dtype == torch.float32
    torch.testing.assert_close(leaf.grad.double(), ones * 1e-9 * scale, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(once.double(), ones * 1e-9, rtol=1e-5, atol=0)
