"""Scores of any size: accuracy of the exponential; overflow only where the true value overflows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import GRAPHS, METHODS, Backend, Inputs, assert_near, graph_id, make_inputs

#: Vectors have 16 or 8 lanes: whole vectors, and a tail of every length.
WIDTHS = (1, 3, 8, 16, 19, 37)


def exponentials(scores: Tensor) -> Tensor:
    """exp of a (N, n) tensor, taken from the gradient: at a masked position a = 1 and b = 0."""
    rows, width = scores.shape
    graph = sf.Absorbing(width + 1)  # token 0 is the clean one, then the scores, then the mask
    log_score = torch.nn.functional.pad(scores, (1, 1))[None].requires_grad_()
    x_t = torch.full((1, rows), graph.mask_index, device=scores.device)
    sf.score_entropy(log_score, 1.0, x_t, torch.zeros_like(x_t), graph, None, "sum").backward()
    return log_score.grad[0, :, 1:-1]


def relative_error(scores: Tensor, got: Tensor) -> float:
    truth = np.exp(scores.cpu().numpy().astype(np.longdouble))
    return float(np.abs((got.cpu().numpy().astype(np.longdouble) - truth) / truth).max())


@pytest.mark.interpreted(width=[1, 37])
@pytest.mark.parametrize("width", WIDTHS)
def test_float32_exponential(backend: Backend, width):
    generator = torch.Generator().manual_seed(0)
    rows = backend.some(4000, 40)
    scores = torch.linspace(-87.3, 88.0, rows * width)  # normal float32 results
    scores = scores[torch.randperm(scores.numel(), generator=generator)].view(-1, width)
    got = exponentials(scores.to(backend.device))
    assert relative_error(scores, got) < 3e-7
    subnormal = torch.linspace(-100, -87.3, backend.some(100, 10) * width).view(-1, width)
    truth = subnormal.double().exp()
    got = exponentials(subnormal.to(backend.device)).cpu().double()
    # Two steps of the subnormal grid; C++ vectors, and Triton's exp2 on a GPU, have 0 there.
    has_zero = backend.name == "cpp" or (backend.name == "triton" and backend.device == "cuda")
    allowed = torch.finfo(torch.float32).tiny if has_zero else 3e-45
    assert float((got - truth).abs().max()) < allowed
    assert not exponentials(torch.full((2, width), -110.0, device=backend.device)).any()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_float64_exponential(backend: Backend, width, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.linspace(-708, 709, 2000 * width, dtype=dtype)
    scores = scores[torch.randperm(scores.numel(), generator=generator)].view(-1, width)
    assert relative_error(scores, exponentials(scores.to(backend.device))) < 1e-15


def big_scores(backend: Backend, dtype: torch.dtype, score: float, weight: float) -> Inputs:
    """Inputs with a big vocabulary and a small weight, every score equal to ``score``."""
    graph = sf.Uniform(backend.some(50257, 3001))
    inputs = make_inputs(graph, dtype, (1, 3), sigma=1.0, device=backend.device)
    log_score = torch.full_like(inputs.log_score, score).scatter(-1, inputs.x_t[..., None], 0)
    return replace(
        inputs, log_score=log_score, row_weight=torch.full_like(inputs.row_weight, weight)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_exp_overflows_only_where_the_value_does(backend: Backend, dtype):
    inputs = big_scores(backend, dtype, 95.0, 1e-6)  # exp(95) = 1.8e41
    leaf = inputs.log_score.requires_grad_()
    loss = sf.score_entropy(*inputs.entropy(), inputs.row_weight)
    loss.sum().backward()
    once_loss, once = sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "none")
    wide = inputs.double().log_score.requires_grad_()
    with sf.use_backend("reference"):
        truth = sf.score_entropy(wide, *inputs.entropy()[1:], inputs.row_weight)
        truth.sum().backward()
    little = torch.finfo(dtype).eps + 1e-15
    for got in (loss, once_loss):
        torch.testing.assert_close(got.double(), truth.detach(), rtol=1e-6, atol=0)
    for got in (leaf.grad, once):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got.double(), wide.grad, rtol=little * 4, atol=1e-30)


@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_a_true_overflow_is_infinite_and_not_nan(backend: Backend, graph: sf.Graph):
    inputs = make_inputs(graph, device=backend.device)
    scores = torch.full_like(inputs.log_score, 300.0).scatter(-1, inputs.x_t[..., None], 0)
    leaf = scores.requires_grad_()
    loss = sf.score_entropy(leaf, *inputs.entropy()[1:])
    loss.sum().backward()
    counted = loss != 0
    assert torch.equal(loss[counted], torch.full_like(loss[counted], torch.inf))
    assert not leaf.grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_scores_of_minus_infinity(backend: Backend, graph: sf.Graph, dtype):
    """Finite where no logarithm reads them: absorbing graph, at a state other than x_0."""
    inputs = make_inputs(graph, dtype, device=backend.device)
    state = (inputs.x_0 + 1) % graph.vocab_size
    inputs = replace(inputs, log_score=inputs.log_score.scatter(-1, state[..., None], -torch.inf))
    leaf = inputs.log_score.requires_grad_()
    loss = sf.score_entropy(*inputs.entropy())
    loss.sum().backward()
    assert not leaf.grad.isnan().any()
    assert not loss.isnan().any()
    counted = state != inputs.x_t
    if graph.kind == "absorbing":
        assert torch.isfinite(loss).all()
        masked = inputs.x_t == graph.mask_index
        assert not leaf.grad.gather(-1, state[..., None])[masked].any()
    else:  # -r_y ln s_y at s_y = 0
        assert torch.equal(loss[counted], torch.full_like(loss[counted], torch.inf))


@pytest.mark.interpreted(dtype=[torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
@pytest.mark.parametrize("level", [-120.0, 80.0, 200.0])
def test_distributions_at_any_level_of_the_scores(backend: Backend, graph, method, level, dtype):
    inputs = make_inputs(graph, dtype, (3, backend.some(8, 1)), device=backend.device)
    shifted = (inputs.log_score + level).scatter(-1, inputs.x_t[..., None], 0)
    inputs = replace(inputs, log_score=shifted)
    probs = sf.reverse_probs(*inputs.reverse(), method)
    with sf.use_backend("reference"):
        truth = sf.reverse_probs(*inputs.double().reverse(), method)
    assert_near(probs, truth, 1.0, 1e-5)
    one = torch.ones_like(inputs.x_t, dtype=torch.float64)
    torch.testing.assert_close(probs.double().sum(-1), one, rtol=0, atol=1e-5)
    drawn = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
    assert bool((truth.gather(-1, drawn[..., None]) > 0).all())


def with_a_bad_score(backend: Backend, graph: sf.Graph, bad: float) -> tuple[Inputs, list[int]]:
    """Inputs, and the position of a row that may move and contains the bad score."""
    inputs = make_inputs(graph, shape=(3, backend.some(8, 2)), device=backend.device)
    movable = torch.ones_like(inputs.x_t) if graph.kind == "uniform" else inputs.x_t == 11
    b, i = movable.nonzero()[-1].tolist()
    inputs.log_score[b, i, (inputs.x_t[b, i] + 1) % graph.vocab_size] = bad
    return inputs, [b, i]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_on_a_gpu_a_row_without_a_distribution_keeps_its_token(
    backend: Backend, graph, method, bad
):
    if backend.raises:
        pytest.skip("on the CPU it is an error")
    inputs, (b, i) = with_a_bad_score(backend, graph, bad)
    tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u * 0.5)
    assert tokens[b, i] == inputs.x_t[b, i]
    good = make_inputs(graph, shape=(3, backend.some(8, 2)), device=backend.device)
    expected = sf.reverse_step(*good.reverse(), method, u=good.u * 0.5)
    expected[b, i] = inputs.x_t[b, i]
    assert torch.equal(tokens, expected)


@pytest.mark.not_in_smoke
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_a_row_without_a_distribution_is_an_error_on_the_cpu(backend: Backend, graph, method, bad):
    if not backend.raises:
        pytest.skip("on a GPU such a row keeps its token")
    inputs, (b, i) = with_a_bad_score(backend, graph, bad)
    where = rf"log_score at position \({b}, {i}\)"
    with pytest.raises(ValueError, match=where):
        sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
    with pytest.raises(ValueError, match=where):
        sf.reverse_probs(*inputs.reverse(), method)


def test_a_row_of_zero_weights(backend: Backend):
    inputs = make_inputs(sf.Absorbing(11), device=backend.device)
    inputs.log_score[inputs.x_t == 11] = -torch.inf
    if not backend.raises:
        stay = sf.reverse_step(*inputs.reverse(), "denoise", u=inputs.u)
        assert torch.equal(stay, inputs.x_t)
        return
    with pytest.raises(ValueError, match=r"every weight is zero"):
        sf.reverse_step(*inputs.reverse(), "denoise")
    assert torch.equal(sf.reverse_step(*inputs.reverse(), "analytic"), inputs.x_t)
