"""SEDD's fused head: the losses, gradients and tokens of log scores, and when it is used."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sedd_fast as sf
from helpers.tiny_models import KINDS, assert_same_gradients, batch, gradients, tiny
from sedd_fast.models.interface import (
    ReverseStepRequest,
    ScoreEntropyRequest,
    takes_request,
)
from sedd_fast.models.sedd import SEDD

by_kind = pytest.mark.parametrize(("graph", "scaled"), KINDS)
by_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
#: For slow tests: every kind and every reduction once.
by_either = pytest.mark.parametrize(
    ("graph", "scaled", "reduction"),
    [(*kind, reduction) for kind, reduction in zip(KINDS, ("none", "mean", "sum"), strict=True)],
)


@by_kind
@by_reduction
def test_the_loss_and_its_gradients_are_those_of_the_log_scores(graph, scaled, reduction):
    model = tiny(graph, scaled)
    x_t, sigma, x_0, weight = batch(model)
    fused = model(x_t, sigma, ScoreEntropyRequest(x_0, weight, reduction))
    fused.sum().backward()
    ours = gradients(model)
    log_score = model(x_t, sigma)
    expected = sf.score_entropy(log_score, sigma, x_t, x_0, model.graph, weight, reduction)
    expected.sum().backward()
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, gradients(model))


@by_kind
@pytest.mark.parametrize("method", ["analytic", "euler", "denoise"])
def test_a_step_is_that_of_the_log_scores(graph, scaled, method):
    model = tiny(graph, scaled).eval()
    x_t, sigma, _, _ = batch(model, size=40)
    u = torch.rand(40, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = model(x_t, sigma, ReverseStepRequest(method, sigma * 0.05, u))
        log_score = model(x_t, sigma)
    expected = sf.reverse_step(log_score, x_t, sigma, sigma * 0.05, model.graph, method, u=u)
    assert step.dtype == torch.int64
    assert float((step == expected).double().mean()) > 0.99  # the others are ties
    assert bool((step != x_t).any())


@by_kind
def test_rows_may_be_given(graph, scaled):
    model = tiny(graph, scaled)
    x_t, sigma, x_0, weight = batch(model)
    rows = sf.touched_rows(x_t, model.graph, weight, max_rows=48)
    asked = ScoreEntropyRequest(x_0, weight, "sum")
    got = model(x_t, sigma, replace(asked, rows=rows))
    torch.testing.assert_close(got, model(x_t, sigma, asked))


def test_sigma_may_be_a_column_or_a_scalar():
    model = tiny()
    x_t, sigma, x_0, _ = batch(model)
    asked = ScoreEntropyRequest(x_0)
    assert torch.equal(model(x_t, sigma, asked), model(x_t, sigma[:, None], asked))
    assert torch.equal(model(x_t, sigma[1], asked), model(x_t, sigma[1].expand(4), asked))


@pytest.mark.parametrize("head", [None, ScoreEntropyRequest(torch.zeros(2, 3, dtype=torch.long))])
def test_wrong_tokens_are_named(head):
    model, sigma = tiny(), torch.ones(2)
    with pytest.raises(ValueError, match=r"\[0, 12\), got 99 to 99"):
        model(torch.full((2, 3), 99), sigma, head)
    with pytest.raises(TypeError, match=r"must be int64.*call|convert"):
        model(torch.zeros(2, 3), sigma, head)


def test_autocast_gives_float32_gradients_close_to_float32():
    model = tiny(vocab_size=300)
    x_t, sigma, x_0, weight = batch(model)
    model(x_t, sigma, ScoreEntropyRequest(x_0, weight, "mean")).backward()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x_t, sigma, ScoreEntropyRequest(x_0, weight, "mean"))
    loss.backward()
    for name, got in gradients(model).items():
        assert got.dtype == torch.float32
        far = float((got - exact[name]).norm() / exact[name].norm())
        assert 0 < far < 0.05, name


# The objective


@by_kind
@by_reduction
def test_the_objective_uses_the_fused_head(graph, scaled, reduction, calls):
    model = tiny(graph, scaled)
    x_t, _, x_0, _ = batch(model)
    t = torch.linspace(0.2, 0.9, 4)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, reduction)
    fused = objective(model, x_0, t=t, x_t=x_t)
    fused.sum().backward()
    ours = gradients(model)
    one_pass = ["linear_score_entropy_with_grad"]
    assert calls == (["linear_score_entropy", *one_pass] if reduction == "none" else one_pass)
    calls.clear()
    unfused = objective(lambda x, s: model(x, s), x_0, t=t, x_t=x_t)
    unfused.sum().backward()
    assert calls == ["score_entropy"]
    torch.testing.assert_close(fused, unfused, rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, gradients(model))


def test_a_loss_mask_reaches_the_fused_head(calls):
    model = tiny()
    x_t, _, x_0, _ = batch(model)
    mask, t = torch.arange(12).expand(4, 12) >= 5, torch.linspace(0.2, 0.9, 4)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    fused = objective(model, x_0, mask, t, x_t)
    torch.testing.assert_close(fused, objective(lambda x, s: model(x, s), x_0, mask, t, x_t))
    assert calls == ["linear_score_entropy_with_grad", "score_entropy"]


def test_wrapped_networks_are_found_and_the_wrapper_is_called(one_process, calls, own_hooks):
    torch.compiler.reset()
    model = tiny()
    x_t, _, x_0, _ = batch(model)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    t = torch.linspace(0.2, 0.9, 4)
    expected = objective(model, x_0, t=t, x_t=x_t)
    compiled = torch.compile(model, backend="aot_eager")
    for wrapped in (
        DistributedDataParallel(model),
        compiled,
        DistributedDataParallel(compiled),
        torch.compile(DistributedDataParallel(model), backend="aot_eager"),
        torch.optim.swa_utils.AveragedModel(model),
    ):
        calls.clear()
        entered: list[object] = []
        hook = wrapped.register_forward_pre_hook(lambda *args, into=entered: into.append(args[0]))
        loss = objective(wrapped, x_0, t=t, x_t=x_t)
        hook.remove()
        assert calls == ["linear_score_entropy_with_grad"], type(wrapped)
        assert len(entered) == 1
        assert entered[0] is wrapped
        torch.testing.assert_close(loss, expected)


def test_activation_checkpointing_of_the_whole_network_keeps_the_fused_head(calls):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny()
    x_t, _, x_0, _ = batch(model)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    t = torch.linspace(0.2, 0.9, 4)
    objective(model, x_0, t=t, x_t=x_t).backward()
    expected = gradients(model)
    calls.clear()
    objective(checkpoint_wrapper(model), x_0, t=t, x_t=x_t).backward()
    assert set(calls) == {"linear_score_entropy_with_grad"}
    assert_same_gradients(gradients(model), expected)


class Passing(torch.nn.Module):
    """A user's wrapper that passes requests on to the network, and declares that it does."""

    def __init__(self, inner: SEDD) -> None:
        super().__init__()
        self.inner, self.graph, self.head_requests = inner, inner.graph, inner.head_requests

    def forward(self, *args: Any) -> Tensor:
        return self.inner(*args)


def test_a_wrapper_that_passes_requests_on_uses_the_fused_head(calls):
    model = tiny()
    x_t, _, x_0, _ = batch(model)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    objective(Passing(model), x_0, t=torch.linspace(0.2, 0.9, 4), x_t=x_t)
    assert calls == ["linear_score_entropy_with_grad"]


class Cooler(SEDD):
    """A user's subclass that changes the output."""

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(indices, sigma) * 0.5


class Wrapper(torch.nn.Module):
    """A user's module around a network, without support for losses."""

    def __init__(self, module: SEDD) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.module(x, sigma) * 0.5


def test_other_modules_compute_log_scores(calls):
    model = tiny()
    x_t, _, x_0, _ = batch(model)
    t = torch.linspace(0.2, 0.9, 4)
    cooler = Cooler(model.config)
    cooler.load_state_dict(model.state_dict())
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    for other in (lambda x, s: model(x, s) * 0.5, cooler, Wrapper(model)):
        calls.clear()
        loss = objective(other, x_0, t=t, x_t=x_t)
        assert calls == ["score_entropy"]
        sigma, rate = model.noise(t)
        expected = sf.score_entropy(model(x_t, sigma) * 0.5, sigma, x_t, x_0, model.graph)
        torch.testing.assert_close(loss, (rate * expected.sum(-1)).mean())


def test_a_network_of_another_graph_computes_log_scores(calls):
    model = tiny("uniform", vocab_size=12)  # as many states as the absorbing graph over 11
    graph = sf.Absorbing(11)
    for request in (ScoreEntropyRequest, ReverseStepRequest):
        assert not takes_request(model, graph, request)
        assert takes_request(model, sf.Uniform(12), request)
    _, _, x_0, _ = batch(tiny())
    t = torch.linspace(0.2, 0.9, 4)
    sf.ScoreEntropyLoss(graph, model.noise)(model, x_0, t=t)
    assert calls == ["score_entropy"]


# Evaluation


@pytest.mark.parametrize(
    ("graph", "scaled", "mode"),
    [(*kind, mode) for kind in KINDS for mode in ("exact", "paper")]
    + [("absorbing", True, "normalised")],
)
def test_a_bound_needs_no_log_scores(graph, scaled, mode, calls, own_hooks):
    """The bound equals that from log scores, which only estimates of whole rows still need."""
    model = tiny(graph, scaled)
    x_0 = batch(model, size=5)[2]
    network_calls: list[tuple[Any, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: network_calls.append(inputs))

    def nats(network: Callable[..., Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        bound = sf.likelihood_bound(
            network, x_0, model.graph, model.noise, 32, mode, generator, batch_size=40
        )
        return bound.nats

    fused, asked, ops = nats(model), list(network_calls), list(calls)
    calls.clear()
    through_scores = nats(lambda x, sigma: model(x, sigma))
    torch.testing.assert_close(fused, through_scores, rtol=1e-5, atol=0)
    assert "linear_score_entropy" not in calls
    if mode == "normalised":
        assert "linear_score_entropy" not in ops
        return
    reads = 2 if graph == "uniform" else 1  # noised tokens, and x_0 itself for no noised token
    assert ops.count("linear_score_entropy") == 4 * reads  # 5 sequences x 32 samples, 40 at a time
    assert "score_entropy" not in ops
    dense = [inputs for inputs in asked if len(inputs) == 2]  # (x_t, sigma): log scores
    reconstructed = 5 * 4 * reads if mode == "exact" and graph == "uniform" else 0
    assert sum(len(x_t) for x_t, _ in dense) == reconstructed


@by_either
def test_whole_training_runs_are_equal(graph, scaled, reduction):
    start = tiny(graph, scaled)

    def train(seen: Callable[[SEDD], Any]) -> list[float]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        objective = sf.ScoreEntropyLoss(model.graph, model.noise, reduction)
        losses = []
        for step in range(25):
            x_0 = torch.arange(12).add(step % 5).remainder(11).expand(8, 12)
            generator = torch.Generator().manual_seed(step % 5)
            loss = objective(seen(model), x_0, generator=generator).mean() / 12
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    fused = train(lambda model: model)
    unfused = train(lambda model: lambda x, s: model(x, s))
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(unfused), rtol=1e-4, atol=1e-4)
    assert sum(fused[-5:]) < sum(fused[:5])


# Around the network


@pytest.mark.parametrize("reentrant", [False, True])
@by_reduction
def test_activation_checkpointing(reduction, reentrant):
    model = tiny()
    x_t, sigma, x_0, weight = batch(model)
    model(x_t, sigma, ScoreEntropyRequest(x_0, weight, reduction)).sum().backward()
    expected = gradients(model)

    def forward(sigma: Tensor) -> Tensor:
        return model(x_t, sigma.detach(), ScoreEntropyRequest(x_0, weight, reduction))

    given = sigma.clone().requires_grad_(reentrant)  # without one, reentrant recording is skipped
    checkpoint(forward, given, use_reentrant=reentrant).sum().backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize(
    ("graph", "scaled", "reduction"), [("absorbing", True, "none"), ("uniform", False, "mean")]
)
def test_the_compiled_network_has_no_graph_break(graph, scaled, reduction):
    torch.compiler.reset()
    model = tiny(graph, scaled, n_blocks=1)
    x_t, sigma, x_0, weight = batch(model)
    model(x_t, sigma, ScoreEntropyRequest(x_0, weight, reduction)).mean().backward()
    expected = gradients(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(x_t, sigma, ScoreEntropyRequest(x_0, weight, reduction))
    torch.testing.assert_close(loss, model(x_t, sigma, ScoreEntropyRequest(x_0, weight, reduction)))
    loss.mean().backward()
    assert_same_gradients(gradients(model), expected)
    u = torch.rand(4, 12, 2, dtype=torch.float64)
    step = ReverseStepRequest("analytic", sigma * 0.1, u)
    with torch.no_grad():
        assert torch.equal(compiled(x_t, sigma, step), model(x_t, sigma, step))


def test_an_objective_compiled_whole_keeps_the_fused_head(calls):
    torch.compiler.reset()
    model = tiny(n_blocks=1)
    x_t, _, x_0, _ = batch(model)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    compiled = torch.compile(objective, backend="eager", fullgraph=True, dynamic=True)
    t = torch.linspace(0.3, 0.9, 4)
    loss = compiled(model, x_0, t=t, x_t=x_t)
    assert calls == ["linear_score_entropy_with_grad"]
    torch.testing.assert_close(loss, objective(model, x_0, t=t, x_t=x_t))
