"""The GPU kernels at real sizes: 4,096 rows of 50,258 scores at any alignment, and > 2^31 scores.

The kernel computes the whole tensor; slices of it are compared with the float64 reference, with the
tolerances of the small tests.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    METHODS,
    TOLERANCE,
    Backend,
    Inputs,
    assert_inverse_cdf,
    assert_near,
    graph_id,
    graphs_of,
    loss_and_gradient,
    naive_score_entropy,
)

pytestmark = pytest.mark.gpu
SHAPE = (4, 1024)
LAYOUTS = ("contiguous", "padded rows", "odd start", "transposed batch")
by_graph = pytest.mark.parametrize("graph", graphs_of((50257,)), ids=graph_id)
by_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def big_inputs(
    graph: sf.Graph, dtype: torch.dtype, layout: str = "contiguous", shape: tuple[int, int] = SHAPE
) -> Inputs:
    """Inputs made on the GPU; scores of masked positions sum to about 1 / E."""
    generator = torch.Generator("cuda").manual_seed(0)
    at = {"generator": generator, "device": "cuda"}
    x_0 = torch.randint(graph.vocab_size, shape, **at)
    noised = torch.rand(shape, **at) < 0.4
    limit = graph.sample_limit(shape, device=torch.device("cuda"))
    x_t = torch.where(noised, limit, x_0)
    sigma = torch.linspace(0.05, 3.0, shape[0], dtype=torch.float64, device="cuda")
    log_score = empty(shape, graph.dim, dtype, layout)
    log_score.normal_(-8 if graph.kind == "absorbing" else 0, 1.5, generator=generator)
    log_score.scatter_(-1, x_t[..., None], 0)
    return Inputs(
        graph=graph,
        log_score=log_score,
        sigma=sigma,
        dsigma=sigma * 0.02,
        x_t=x_t,
        x_0=x_0,
        row_weight=torch.rand(shape, **at, dtype=torch.float64) + 0.5,
        u=torch.rand((*shape, 2), **at, dtype=torch.float64),
    )


def empty(shape: tuple[int, int], dim: int, dtype: torch.dtype, layout: str) -> Tensor:
    batch, length = shape
    on = {"dtype": dtype, "device": "cuda"}
    if layout == "padded rows":
        return torch.empty(batch, length, -(-dim // 8) * 8, **on)[..., :dim]
    if layout == "odd start":
        return torch.empty(batch, length, dim + 3, **on)[..., 1:-2]
    if layout == "transposed batch":
        return torch.empty(length, batch, dim, **on).transpose(0, 1)
    return torch.empty(batch, length, dim, **on)


def some_rows(inputs: Inputs) -> Tensor:
    """Positions along L, both ends included; odd steps give every alignment of a row."""
    return torch.tensor([0, 1, 2, 3, 341, 680, 1023], device="cuda") % inputs.x_t.shape[1]


def picked(inputs: Inputs, at: Tensor) -> Inputs:
    """The inputs at those positions."""
    names = ("log_score", "x_t", "x_0", "row_weight", "u")
    return replace(inputs, **{name: getattr(inputs, name).detach()[:, at] for name in names})


@by_graph
@by_dtype
@by_layout
def test_loss_and_gradient(gpu: Backend, graph: sf.Graph, dtype, layout):
    inputs = big_inputs(graph, dtype, layout)
    loss, gradient = loss_and_gradient(inputs)
    once_loss, once = sf.score_entropy_with_grad(*inputs.entropy(), reduction="none")
    assert bool(torch.isfinite(loss).all())
    at = some_rows(inputs)
    part = picked(inputs, at).double()
    with sf.use_backend("reference"):
        true_loss, true_gradient = loss_and_gradient(part)
    _, _, size = naive_score_entropy(part)
    for got in (loss, once_loss):
        assert_near(got[:, at], true_loss, size, TOLERANCE[dtype])
    score = part.log_score.exp() / (1 if graph.kind == "absorbing" else graph.vocab_size)
    terms = true_gradient.abs() + (true_gradient - score).abs()
    rounding = gpu.rounding(dtype) * true_gradient.abs() + 1e-40
    for got in (gradient, once):
        assert_near(got[:, at], true_gradient, terms * TOLERANCE[dtype] + rounding, 1.001)


@by_graph
@by_dtype
@by_layout
@pytest.mark.parametrize("method", METHODS)
def test_tokens(gpu: Backend, graph: sf.Graph, dtype, layout, method):
    inputs = big_inputs(graph, dtype, layout)
    tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
    at = some_rows(inputs)
    part = picked(inputs, at)
    assert_inverse_cdf(tokens[:, at], part, method)
    with sf.use_backend("reference"):
        expected = sf.reverse_step(*part.reverse(), method, u=part.u)
    assert float((tokens[:, at] == expected).double().mean()) > 0.9  # the rest are ties, checked
    if graph.kind == "absorbing":
        unmasked = inputs.x_t != graph.mask_index
        assert torch.equal(tokens[unmasked], inputs.x_t[unmasked])


@pytest.mark.usefixtures("alone")
@by_graph
def test_rows_beyond_two_to_the_31(gpu: Backend, graph: sf.Graph):
    """The last sequences give the same results as they do alone."""
    shape = (43, 1024)
    assert shape[0] * shape[1] * graph.dim > 2**31
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    inputs = big_inputs(graph, torch.bfloat16, shape=shape)
    whole = everything(inputs)
    last = slice(-2, None)
    alone = {name: value[last].clone() for name, value in tensors(inputs).items()}
    for got, expected in zip(whole, everything(replace(inputs, **alone)), strict=True):
        # The rows' alignment differs, and with it which states are added first.
        torch.testing.assert_close(got[last], expected, rtol=1e-5, atol=1e-5)


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    return {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}


def everything(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient, tokens, noised tokens."""
    loss, grad = sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "none")
    tokens = sf.reverse_step(*inputs.reverse(), u=inputs.u)
    noised = sf.sample_transition(inputs.x_0, inputs.sigma, inputs.graph, u=inputs.u)
    return loss, grad, tokens, noised
