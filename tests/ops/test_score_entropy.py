"""score_entropy and score_entropy_with_grad: truth, golden values, gradients, reductions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import (
    DTYPES,
    GRAPHS,
    INTERPRETED_VOCABULARIES,
    TOLERANCE,
    Backend,
    Inputs,
    assert_near,
    golden,
    graph_id,
    graphs_of,
    loss_and_gradient,
    make_inputs,
    naive_score_entropy,
    vocabularies_and_dtypes,
    worst,
)

pytestmark = pytest.mark.operation("score_entropy")
SIGMAS = (1e-5, 1e-3, 0.05, 1.0, 20.0)
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
in_float64 = pytest.mark.parametrize("dtype", [torch.float64], ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check_against_truth(backend: Backend, inputs: Inputs) -> None:
    """Loss and both gradients must be as near to float64 as the naive formula, plus a little.

    The loss is returned in float32 or float64 and must be as accurate, for any dtype of the scores.
    A gradient is rounded once to its dtype.
    """
    dtype = inputs.log_score.dtype
    little = TOLERANCE[dtype]
    with sf.use_backend("reference"):
        true_loss, true_gradient = loss_and_gradient(inputs.double())
    exact_loss, exact_gradient, size = naive_score_entropy(inputs.double())
    naive_loss, naive_gradient, _ = naive_score_entropy(inputs)
    assert_near(exact_loss, true_loss, size + 1, 1e-13)
    assert_near(exact_gradient, true_gradient, size[..., None] + 1, 1e-13)

    loss, gradient = loss_and_gradient(inputs)
    once_loss, once_gradient = sf.score_entropy_with_grad(*inputs.entropy(), reduction="none")
    for got in (loss, once_loss):
        assert worst(got - true_loss) <= worst(naive_loss - true_loss) + little * float(size.max())
        assert_near(got, true_loss, size, little)
    terms = true_gradient.abs() + (true_gradient - exact_score(inputs)).abs()
    for got in (gradient, once_gradient):
        rounding = backend.rounding(got.dtype) * true_gradient.abs()
        rounding += torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
        assert_near(got, true_gradient, terms * little + rounding, 1.001)
        allowed = worst(naive_gradient - true_gradient) + float((terms * little + rounding).max())
        assert worst(got - true_gradient) <= allowed


def exact_score(inputs: Inputs) -> Tensor:
    """a exp(l) where the gradient has it: the size of the terms that may cancel."""
    weight = 1.0 if inputs.graph.kind == "absorbing" else 1 / inputs.graph.vocab_size
    return weight * inputs.log_score.double().exp()


@pytest.mark.interpreted(dtype=[torch.float32])
@by_dtype
@by_graph
@pytest.mark.parametrize("sigma", SIGMAS)
def test_truth_at_every_noise_level(backend: Backend, graph: sf.Graph, dtype, sigma):
    shape = (3, backend.some(8, 2))
    inputs = make_inputs(graph, dtype, shape, sigma=sigma, device=backend.device)
    check_against_truth(backend, inputs)


@pytest.mark.interpreted_float16
@pytest.mark.interpreted(graph=graphs_of(INTERPRETED_VOCABULARIES))
@pytest.mark.parametrize(("graph", "dtype"), vocabularies_and_dtypes(), ids=graph_id)
def test_truth_at_odd_vocabularies(backend: Backend, graph: sf.Graph, dtype):
    shape = (2, backend.some(3, 1))
    check_against_truth(backend, make_inputs(graph, dtype, shape, device=backend.device))


@pytest.mark.not_interpreted  # its blocks are so small that 513 states are as good
@pytest.mark.parametrize("graph", graphs_of((50257,)), ids=graph_id)
def test_truth_at_the_vocabulary_of_gpt2(backend: Backend, graph: sf.Graph):
    check_against_truth(backend, make_inputs(graph, torch.float32, (2, 4), device=backend.device))


@pytest.mark.interpreted(sigma=[1e-5])
@pytest.mark.parametrize("sigma", [1e-5, 3e-4, 1e-3])
def test_small_noise_at_a_big_vocabulary_is_finite(backend: Backend, sigma):
    inputs = make_inputs(sf.Uniform(20011), shape=(1, 4), sigma=sigma, device=backend.device)
    loss, gradient = loss_and_gradient(inputs)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    check_against_truth(backend, inputs)


@in_float64
@by_graph
def test_golden(backend: Backend, graph: sf.Graph, dtype):
    values = {name: value.to(backend.device) for name, value in golden(graph).items()}
    leaf = values["log_score"].to(dtype).requires_grad_()
    rest = (values["sigma"], values["xt"], values["x0"], graph)
    loss = sf.score_entropy(leaf, *rest)
    torch.testing.assert_close(loss, values["score_entropy"], rtol=1e-12, atol=1e-12)
    (loss * values["loss_weight"]).sum().backward()
    torch.testing.assert_close(leaf.grad, values["grad_log_score"], rtol=1e-12, atol=1e-12)
    loss, grad = sf.score_entropy_with_grad(leaf, *rest, values["loss_weight"])
    expected = (values["score_entropy"] * values["loss_weight"]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, values["grad_log_score"], rtol=1e-12, atol=1e-12)


@in_float64
@by_graph
def test_the_minimum_is_zero_at_the_transition_ratios(backend: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, device=backend.device)
    at = torch.stack([graph.transition_matrix(float(s)) for s in inputs.sigma]).to(backend.device)
    row = at[torch.arange(3)[:, None], :, inputs.x_0]  # (B, L, dim): p(y | x_0)
    ratio = row / row.gather(-1, inputs.x_t[..., None])
    exact = replace(inputs, log_score=ratio.clamp(min=1e-300).log())
    loss, gradient = loss_and_gradient(exact)
    assert_near(loss, torch.zeros_like(loss), 1.0, 1e-12)
    assert_near(gradient, torch.zeros_like(gradient), 1.0, 1e-12)


@in_float64
@by_graph
def test_gradcheck(backend: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, (2, 3), device=backend.device)
    leaf = inputs.log_score.requires_grad_()

    def weighted(log_score: Tensor) -> Tensor:
        return sf.score_entropy(log_score, *inputs.entropy()[1:], inputs.row_weight)

    assert torch.autograd.gradcheck(weighted, (leaf,))


@pytest.mark.interpreted_float16
@by_graph
@by_dtype
def test_dtypes_of_the_results(backend: Backend, graph: sf.Graph, dtype):
    inputs = make_inputs(graph, dtype, device=backend.device)
    loss, gradient = loss_and_gradient(inputs)
    _, once = sf.score_entropy_with_grad(*inputs.entropy())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == wide
    assert gradient.dtype == dtype
    assert once.dtype == (torch.float32 if dtype == torch.float16 else dtype)


@by_graph
def test_reductions(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, backend.widest, device=backend.device)
    call, weight = inputs.entropy(), inputs.row_weight.to(backend.widest)
    each = sf.score_entropy(*call)
    assert each.shape == inputs.x_t.shape
    weighted = sf.score_entropy(*call, weight)
    torch.testing.assert_close(weighted, each * weight)
    torch.testing.assert_close(sf.score_entropy(*call, weight, "sum"), weighted.sum())
    mean = sf.score_entropy(*call, weight, "mean")
    torch.testing.assert_close(mean, weighted.sum() / inputs.x_t.numel())
    for reduction in ("none", "sum", "mean"):
        leaf = inputs.log_score.clone().requires_grad_()
        loss = sf.score_entropy(leaf, *call[1:], weight, reduction)
        loss.sum().backward()
        once, grad = sf.score_entropy_with_grad(*call, weight, reduction)
        torch.testing.assert_close(once, loss.detach())
        torch.testing.assert_close(grad, leaf.grad)


@pytest.mark.not_interpreted
@pytest.mark.parametrize("form", ["number", "0-dim", "(B,)", "(B, 1)", "float32"])
@by_graph
def test_forms_of_sigma(backend: Backend, graph: sf.Graph, form):
    inputs = make_inputs(graph, shape=(3, 2), sigma=0.5, device=backend.device)
    sigma = {
        "number": 0.5,
        "0-dim": torch.tensor(0.5),
        "(B,)": inputs.sigma,
        "(B, 1)": inputs.sigma[:, None],
        "float32": inputs.sigma.float(),
    }[form]
    expected = sf.score_entropy(*inputs.entropy())
    got = sf.score_entropy(inputs.log_score, sigma, *inputs.entropy()[2:])
    assert torch.equal(got, expected)


@pytest.mark.interpreted(dtype=[torch.float32])
@pytest.mark.parametrize("masked", [False, True], ids=["none masked", "all masked"])
@by_dtype
def test_rows_all_of_one_kind(backend: Backend, dtype, masked):
    graph = sf.Absorbing(11)
    inputs = make_inputs(graph, dtype, device=backend.device)
    x_t = torch.full_like(inputs.x_0, graph.mask_index) if masked else inputs.x_0
    inputs = replace(inputs, x_t=x_t)
    check_against_truth(backend, inputs)
    loss, gradient = loss_and_gradient(inputs)
    assert bool((loss != 0).any()) == masked
    assert bool((gradient != 0).any()) == masked
