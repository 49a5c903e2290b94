"""The contracts at the edge of the inputs (docs/design.md): one value on every backend."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import GRAPHS, METHODS, Backend, assert_near, graph_id, make_inputs
from sedd_fast.backends import registry
from sedd_fast.losses.dense_score_entropy import DenseScoreEntropyLoss

mpmath = pytest.importorskip("mpmath")

#: Warnings of numpy in Triton's interpreter about intended overflows.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
    pytest.mark.not_in_smoke,
]
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
by_method = pytest.mark.parametrize("method", METHODS)
A, U = sf.Absorbing(3), sf.Uniform(4)
LEVELS = (5e-324, 1e-308, 1e-301, 1e-16, 0.5, 33.0, 36.5, 40.0, 300.0, 700.0, 709.5, 746.0, 1e4)
#: Of four states; the second to last row cancels but for its last digits, where much noise goes.
ROWS = (
    (0.0, 0.0, 0.0, 0.0),
    (0.5, -1.0, 2.0, 0.0),
    (30.0, 30.0, 30.0, 0.0),
    (-80.0, -81.0, -90.0, 0.0),
    (0.0, 2.0**-50, 0.0, 0.0),
    (1000.0, 998.0, -1e5, 0.0),
)


def exact_probs(row: tuple[float, ...], graph: sf.Graph, method: str, noise: float) -> list[float]:
    """Equations 17 and 19 for x_t = 3, in enough digits."""
    with mpmath.workdps(60 if noise < 20 else 700):
        s = [mpmath.exp(mpmath.mpf(score)) for score in row[:3]]
        d = mpmath.mpf(noise)
        keep, lost = mpmath.exp(-d), -mpmath.expm1(-d)
        total, size = sum(s), 1 if graph is A else 4
        if method == "euler":
            weights = [d / size * y for y in s] + [1 - d / size * total]
        elif graph is A:
            weights = [lost * y for y in s] + [0 if method == "denoise" else keep - lost * total]
        else:
            mean = (total + 1) / 4
            # times exp(-d): s_y - (1 - e) mean = (s_y - mean) + e mean
            weights = [lost / 4 * (y - mean + keep * mean) for y in s]
            weights.append((keep + lost / 4) * (1 - mean + keep * mean))
        weights = [max(w, mpmath.mpf(0)) for w in weights]
        return [float(w / sum(weights)) for w in weights]


@by_method
@pytest.mark.parametrize("graph", [A, U], ids=graph_id)
@pytest.mark.parametrize("noise", LEVELS)
def test_reverse_steps_at_every_noise_level(backend: Backend, graph, method, noise):
    if backend.interpreted and noise not in (1e-308, 36.5, 700.0):
        pytest.skip("interpreted: another case runs the same code")
    dtype = backend.widest
    log_score = torch.tensor(ROWS, dtype=dtype, device=backend.device)[None]
    exact = [[exact_probs(row, graph, method, noise) for row in ROWS]]
    truth = torch.tensor(exact, dtype=torch.float64, device=backend.device)
    x_t = torch.full(log_score.shape[:2], 3, device=backend.device)
    arguments = log_score, x_t, noise, noise, graph, method
    little = 1e-11 if dtype == torch.float64 else 2e-6
    assert_near(sf.reverse_probs(*arguments), truth, 1.0, little)
    for u0 in (0.0, 0.4, 1 - 2**-53):
        u = torch.full((*x_t.shape, 2), u0, dtype=torch.float64, device=backend.device)
        moves = sf.reverse_step(*arguments, u=u) != 3
        assert bool(moves[truth[..., 3] < 1 - u0 - 1e-5].all())
        assert not bool(moves[truth[..., 3] > 1 - u0 + 1e-5].any())


@by_graph
@pytest.mark.parametrize("sigma", [1e-308, 1e-5, 36.5, 700.0, 1e5])
def test_the_scale_of_a_head_at_every_noise_level(backend: Backend, graph, sigma):
    """linear_reverse_step of raw outputs, with l = f - ln E - ln V where sigma scales them."""
    if not hasattr(registry.module(backend.name), "linear_reverse_step"):
        pytest.skip(f"{backend} has no head")
    scaled = graph.kind == "absorbing"
    weight = torch.zeros(graph.dim, 1, device=backend.device)
    bias = torch.arange(graph.dim, device=backend.device) / 4 + 200.0 * (sigma == 1e-5)
    x_t = torch.full((1, 6), graph.dim - 1, device=backend.device)
    u = torch.rand((1, 6, 2), dtype=torch.float64, device=backend.device)
    hidden = torch.ones(1, 6, 1, device=backend.device)
    common = x_t, sigma, None, graph, "denoise"
    got = sf.linear_reverse_step(hidden, weight, bias, *common, scaled, u=u)
    expected = sf.reverse_step(bias.expand(1, 6, -1), *common, u=u)
    assert torch.equal(got, expected)  # denoising does not depend on the scale


@by_method
@pytest.mark.parametrize("own", [math.nan, math.inf, 1e4])
def test_a_heads_output_at_x_t_is_not_read(backend: Backend, method, own):
    if not hasattr(registry.module(backend.name), "linear_reverse_step"):
        pytest.skip(f"{backend} has no head")
    weight = torch.ones(20, 1, device=backend.device)
    bias = torch.arange(20, device=backend.device) / 8
    bias[5] = own
    x_t = torch.full((2, 3), 5, device=backend.device)
    u = torch.rand((2, 3, 2), dtype=torch.float64, device=backend.device)
    u[..., 0] = 0.0
    common = x_t, 1.0, 0.3, sf.Uniform(20), method
    hidden = torch.ones(2, 3, 1, device=backend.device)
    got = sf.linear_reverse_step(hidden, weight, bias, *common, False, u=u, workspace=1)
    expected = sf.reverse_step((bias + 1).expand(2, 3, -1), *common, u=u)
    assert torch.equal(got, expected)
    assert bool((got != 5).any())


@by_graph
@pytest.mark.parametrize("method", ["analytic", "euler"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_noise_no_score_is_read(backend: Backend, graph, method, bad):
    inputs = make_inputs(graph, shape=(2, 3), device=backend.device)
    leaf = torch.full_like(inputs.log_score, bad).requires_grad_()
    dsigma = torch.zeros_like(inputs.dsigma)
    probs = sf.reverse_probs(leaf, inputs.x_t, inputs.sigma, dsigma, graph, method)
    one_hot = torch.nn.functional.one_hot(inputs.x_t, graph.dim).to(probs.dtype)
    assert torch.equal(probs, one_hot)
    (probs * inputs.log_score.detach()).sum().backward()
    assert not leaf.grad.any()
    drawn = sf.reverse_step(leaf, inputs.x_t, inputs.sigma, dsigma, graph, method, u=inputs.u)
    assert torch.equal(drawn, inputs.x_t)


@by_method
def test_a_row_of_no_weight_stays(backend: Backend, method):
    x_t = torch.full((1, 1), 3, device=backend.device)
    log_score = torch.full((1, 1, 4), -torch.inf, device=backend.device)
    if method == "denoise" and backend.raises:
        with pytest.raises(ValueError, match="no distribution"):
            sf.reverse_step(log_score, x_t, 1.0, None, A, method)
        return
    for noise in (1.0, 800.0, 1e300):
        assert torch.equal(sf.reverse_step(log_score, x_t, noise, noise, A, method), x_t)


def test_scores_of_any_level_give_a_distribution(backend: Backend):
    """Only their differences count where the mask goes for certain."""
    x_t = torch.full((1, 1), 3, device=backend.device)
    u = torch.tensor([[[0.5, 0.6]]], dtype=torch.float64, device=backend.device)
    for level in (-1e30, -3000.0, -90.0, 0.0, 3000.0, 1e30):
        log_score = torch.tensor([[[level, level, -torch.inf, 0.0]]], device=backend.device)
        assert sf.reverse_step(log_score, x_t, 1.0, None, A, "denoise", u=u).item() == 1


@by_graph
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite(backend: Backend, graph, bad):
    """NaN, with zero gradient, masked or not; the row is never read."""
    inputs = make_inputs(graph, shape=(2, 4), device=backend.device)
    weight = inputs.row_weight.clone()
    weight[:, 1:3] = bad
    leaf = inputs.log_score.clone()
    leaf[:, 1:3] = torch.nan
    leaf.requires_grad_()
    loss = sf.score_entropy(leaf, *inputs.entropy()[1:], weight)
    loss.sum().backward()
    once, grad = sf.score_entropy_with_grad(leaf, *inputs.entropy()[1:], weight, "none")
    for one, gradient in ((loss, leaf.grad), (once, grad)):
        assert bool(one[:, 1:3].isnan().all())
        assert bool(one[:, ::3].isfinite().all())
        assert not gradient[:, 1:3].any()
        assert bool(gradient[:, ::3].isfinite().all())
    if hasattr(registry.module(backend.name), "row_sums"):
        total, log_x_0 = sf.row_sums(leaf, inputs.x_t, inputs.x_0, graph, "square", weight)
        assert bool((total + log_x_0)[:, 1:3].isnan().all())
        (gradient,) = torch.autograd.grad(total.sum() + log_x_0.sum(), leaf)
        assert not gradient[:, 1:3].any()


@by_graph
def test_a_weight_of_a_head_that_is_not_finite(backend: Backend, graph):
    if not hasattr(registry.module(backend.name), "linear_score_entropy"):
        pytest.skip(f"{backend} has no head")
    inputs = make_inputs(graph, shape=(2, 4), device=backend.device)
    weight = inputs.row_weight.clone()
    weight[:, 1:3] = torch.nan
    hidden = torch.ones(2, 4, 2, device=backend.device)
    hidden[:, 1:3] = torch.nan
    matrix = torch.ones(graph.dim, 2, device=backend.device)
    leaves = hidden.requires_grad_(), matrix.requires_grad_()
    rest = None, *inputs.entropy()[1:], False, weight
    loss = sf.linear_score_entropy(*leaves, *rest)
    assert torch.equal(loss.isnan(), weight.isnan())
    loss.sum().backward()
    assert not hidden.grad[:, 1:3].any()
    assert bool(matrix.grad.isfinite().all())
    assert sf.linear_score_entropy(*leaves, *rest, "sum").isnan()


def test_a_weight_of_zero_is_never_used(backend: Backend):
    inputs = make_inputs(U, shape=(1, 3), device=backend.device)
    leaf = inputs.log_score.requires_grad_()
    loss = sf.score_entropy(*inputs.entropy(), torch.zeros_like(inputs.row_weight))
    loss.backward(torch.full_like(loss, torch.nan))
    assert not leaf.grad.any()


@pytest.mark.parametrize("graph", [A, U], ids=graph_id)
def test_a_loss_beyond_float64_is_infinite_and_not_nan(backend: Backend, graph):
    x_t = torch.full((1, 2), 3, device=backend.device)
    x_0 = torch.zeros_like(x_t)
    log_score = torch.zeros(1, 2, 4, device=backend.device)
    log_score[0, 1] = torch.tensor([torch.inf, 0.0, -torch.inf, 0.0])
    assert sf.score_entropy(log_score, 1e-310, x_t, x_0, graph)[0, 0] == torch.inf
    assert sf.score_entropy(log_score, 1.0, x_t, x_0, graph)[0, 1] == torch.inf


def empty_calls(shape: tuple[int, int], device: str, **change: Any) -> dict[str, Any]:
    """Every operation on tensors of no position, by name."""
    tokens = torch.zeros(shape, dtype=torch.int64, device=device)
    scores = torch.zeros(*shape, 3, device=device, requires_grad=True)
    hidden = torch.zeros(*shape, 2, device=device, requires_grad=True)
    head = torch.zeros(3, 2, device=device, requires_grad=True)
    noise = {"sigma": torch.ones(shape[0], device=device)} | change
    step = noise["sigma"], torch.ones(shape[0], device=device), sf.Uniform(3)
    last = sf.Uniform(3), None, "mean"
    entropy = noise["sigma"], tokens, tokens
    return {
        "score_entropy": lambda: sf.score_entropy(scores, *entropy, *last),
        "once": lambda: sf.score_entropy_with_grad(scores, *entropy, *last)[0],
        "linear": lambda: sf.linear_score_entropy(
            hidden, head, None, *entropy, sf.Uniform(3), False, None, "mean"
        ),
        "unneeded": lambda: sf.linear_score_entropy(
            hidden.detach(), head.detach(), None, *entropy, sf.Uniform(3), False, None, "mean"
        ),
        "step": lambda: sf.reverse_step(scores, tokens, *step),
        "probs": lambda: sf.reverse_probs(scores, tokens, *step),
        "linear step": lambda: sf.linear_reverse_step(
            hidden, head, None, tokens, *step, scale_by_sigma=False
        ),
        "noising": lambda: sf.sample_transition(tokens, noise["sigma"], sf.Uniform(3)),
    }


HEADS = ("linear", "unneeded", "linear step")


def of_backend(calls: dict[str, Any], backend: Backend) -> dict[str, Any]:
    if hasattr(registry.module(backend.name), "linear_score_entropy"):
        return calls
    return {name: call for name, call in calls.items() if name not in HEADS}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_sigma_of_no_position(backend: Backend, bad, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_CHECK", "1")
    sigma = torch.tensor([1.0, bad], device=backend.device)
    for call in of_backend(empty_calls((2, 0), backend.device, sigma=sigma), backend).values():
        with pytest.raises(ValueError, match=r"sigma must be positive and finite.*sequence 1"):
            call()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
def test_the_mean_of_no_position_is_nan_with_zero_gradient(backend: Backend, shape):
    calls = of_backend(empty_calls(shape, backend.device), backend)
    for name in set(calls) & {"score_entropy", "once", "linear", "unneeded"}:
        assert calls[name]().isnan(), name
    for name in set(calls) & {"step", "probs", "linear step", "noising"}:
        assert calls[name]().shape[:2] == shape, name
    if "linear" in calls:
        head = torch.ones(3, 2, device=backend.device, requires_grad=True)
        hidden = torch.ones(*shape, 2, device=backend.device)
        tokens = torch.zeros(shape, dtype=torch.int64, device=backend.device)
        rest = None, 1.0, tokens, tokens, sf.Uniform(3), False, None, "mean"
        sf.linear_score_entropy(hidden, head, *rest).backward()
        assert not head.grad.any()


@pytest.mark.any_backend
@pytest.mark.parametrize("make", [sf.ScoreEntropyLoss, sf.MaskedCrossEntropy], ids=str)
def test_the_mean_of_no_sequence_is_nan(make):
    bias = torch.zeros(4, requires_grad=True)

    def model(x: Tensor, _: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 4) + bias

    x_0 = torch.zeros(0, 3, dtype=torch.int64)
    for reduction, value in (("mean", math.nan), ("sum", 0.0)):
        loss = make(A, sf.LogLinearNoise(), reduction)(model, x_0)
        torch.testing.assert_close(loss, torch.tensor(value), equal_nan=True)
        loss.backward()
        assert bias.grad is None or not bias.grad.any()
    no_tokens = torch.zeros(2, 0, dtype=torch.int64)
    assert make(A, sf.LogLinearNoise(), "mean")(model, no_tokens) == 0  # two empty sequences


@pytest.mark.any_backend
@pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
def test_a_dense_loss_of_another_graph(graph):
    with pytest.raises(TypeError, match=r"DenseGraph\(Q\), got .*; ScoreEntropyLoss is for"):
        DenseScoreEntropyLoss(graph, sf.LogLinearNoise())
