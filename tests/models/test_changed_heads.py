"""A head that is not the plain layer gives log scores: losses, samples, bounds and gradients."""

import re
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sedd_fast as sf
from helpers.tiny_models import batch, gradients, tiny
from sedd_fast.models import overrides
from sedd_fast.models.interface import ReverseStepRequest, ScoreEntropyRequest, takes_request
from sedd_fast.models.sedd import SEDD

FUSED = {"linear_score_entropy", "linear_score_entropy_with_grad", "linear_reverse_step"}


class LoRA(nn.Module):
    """A linear layer and a low-rank change of it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, base.in_features, generator=seeded()))
        self.b = nn.Parameter(torch.randn(base.out_features, 2, generator=seeded()))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T

    @property
    def weight(self) -> Tensor:  # peft has such a property
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.Module):
    """Another output layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.inner(x, c) + torch.linspace(0, 1, 12)


class Scaled(Tensor):
    """A weight whose product is not that of its numbers, as of a quantised one."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        out = super().__torch_function__(function, types, args, kwargs or {})
        is_product = function is nn.functional.linear
        return 2 * out.as_subclass(Tensor) if is_product else out


class ColderScores(SEDD):
    def _log_score(self, hidden: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        return super()._log_score(hidden, indices, sigma) * 0.5


class OtherFeatures(SEDD):
    def features(self, indices: Tensor, sigma: Tensor) -> Tensor:
        return 2 * super().features(indices, sigma)


class ColderCalls(SEDD):
    def __call__(self, *inputs: Any) -> Tensor:
        return super().__call__(*inputs) / 2


class Colder(SEDD):
    def _from_output(self, output: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        return super()._from_output(output, indices, sigma) / 2


def with_hook(model: SEDD) -> SEDD:
    model.output_layer.register_forward_hook(lambda module, inputs, out: 3 * out.sigmoid())
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_class(kind: type[SEDD], model: SEDD) -> SEDD:
    changed = kind(model.config)
    changed.load_state_dict(model.state_dict())
    return changed


def replace_linear(model: SEDD, make: Callable[[nn.Linear], nn.Module]) -> None:
    model.output_layer.linear = make(model.output_layer.linear)


def doubling(linear: nn.Linear) -> nn.Linear:
    changed = Doubling(linear.in_features, linear.out_features)
    changed.load_state_dict(linear.state_dict())
    return changed


def set_forward(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *inputs: 2 * forward(*inputs)


def scale_weight(model: SEDD) -> None:
    weight = model.output_layer.linear.weight
    del model.output_layer.linear.weight
    model.output_layer.linear.weight = weight.detach().as_subclass(Scaled)


#: What is done to a network: in place, or by returning another one.
CHANGES: dict[str, Callable[[SEDD], SEDD | object]] = {
    "lora": lambda m: replace_linear(m, LoRA),
    "a subclass of Linear": lambda m: replace_linear(m, doubling),
    "forward of the linear layer": lambda m: set_forward(m.output_layer.linear),
    "forward of the output layer": lambda m: set_forward(m.output_layer),
    "another output layer": lambda m: setattr(m, "output_layer", Shifted(m.output_layer)),
    "hook on the linear layer": lambda m: m.output_layer.linear.register_forward_hook(
        lambda module, inputs, out: 3 * out.tanh()
    ),
    "pre-hook on the linear layer": lambda m: m.output_layer.linear.register_forward_pre_hook(
        lambda module, inputs: (2 * inputs[0],)
    ),
    "hook on the output layer": lambda m: m.output_layer.register_forward_hook(
        lambda module, inputs, out: 3 * out.sigmoid()
    ),
    "pruning": lambda m: prune.l1_unstructured(m.output_layer.linear, "weight", 0.5),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.output_layer.linear),
    "a quantised weight": scale_weight,
    "pre-hook on the network": lambda m: m.register_forward_pre_hook(
        lambda module, inputs: (inputs[0], 2 * inputs[1])  # would drop a request
    ),
    "__call__": lambda m: as_class(ColderCalls, m),
    "_from_output and a hook": lambda m: with_hook(as_class(Colder, m)),
    "hook on the network": lambda m: m.register_forward_hook(lambda module, inputs, out: out / 2),
    "_log_score": lambda m: as_class(ColderScores, m),
    "features": lambda m: as_class(OtherFeatures, m),
    "features of the instance": lambda m: setattr(
        m, "features", lambda *inputs: 2 * SEDD.features(m, *inputs)
    ),
    "forward of the instance": lambda m: setattr(
        m, "forward", lambda *inputs: SEDD.forward(m, *inputs) / 2
    ),
}


#: What does not answer a request from the log scores of a call, since it changes the call.
SKIPPED = re.compile("instance|network|__call__")


def changed(change: str) -> SEDD:
    torch.manual_seed(0)
    model = tiny().eval()
    made = CHANGES[change](model)
    return made if isinstance(made, SEDD) else model


@pytest.mark.parametrize("change", CHANGES)
def test_losses_samples_and_bounds_are_those_of_the_log_scores(change: str, calls: list[str]):
    model = changed(change)
    x_t, _, x_0, _ = batch(model)
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    t = torch.linspace(0.2, 0.9, 4)
    loss = objective(model, x_0, t=t, x_t=x_t)
    loss.backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    scores = objective(lambda x, s: model(x, s), x_0, t=t, x_t=x_t)
    scores.backward()
    torch.testing.assert_close(loss, scores)
    for name, p in model.named_parameters():
        assert (p.grad is None) == (got[name] is None), name
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad)
    plain = objective(tiny().eval(), x_0, t=t, x_t=x_t)
    assert not torch.isclose(loss, plain, rtol=1e-4)  # the change is one

    def draw(network: Any) -> tuple[Tensor, Tensor]:
        tokens = sf.sample(network, model.graph, model.noise, (4, 12), 4, generator=seeded())
        bound = sf.likelihood_bound(network, x_0, model.graph, model.noise, 4, generator=seeded())
        return tokens, bound.nats

    calls.clear()
    tokens, nats = draw(model)
    assert FUSED.isdisjoint(calls)
    expected_tokens, expected_nats = draw(lambda x, s: model(x, s))
    assert torch.equal(tokens, expected_tokens)
    torch.testing.assert_close(nats, expected_nats)


@pytest.mark.parametrize("change", [c for c in CHANGES if not SKIPPED.search(c)])
def test_a_request_is_answered_from_log_scores(change: str, calls: list[str]):
    model = changed(change)
    x_t, sigma, x_0, weight = batch(model)
    rows = sf.touched_rows(x_t, model.graph, weight, max_rows=48)
    u = torch.rand(4, 12, 2, dtype=torch.float64, generator=seeded())
    with torch.no_grad():
        log_score = model(x_t, sigma)
        for reduction in ("none", "mean"):
            entropy = sf.score_entropy(log_score, sigma, x_t, x_0, model.graph, weight, reduction)
            for given in (None, rows):
                asked = ScoreEntropyRequest(x_0, weight, reduction, given)
                torch.testing.assert_close(model(x_t, sigma, asked), entropy)
        step = model(x_t, sigma, ReverseStepRequest("denoise", None, u))
    expected = sf.reverse_step(log_score, x_t, sigma, None, model.graph, "denoise", u=u)
    assert torch.equal(step, expected)
    assert FUSED.isdisjoint(calls)


@pytest.mark.parametrize("kind", [ColderScores, OtherFeatures])
@pytest.mark.parametrize("change", ["hook on the output layer", "another output layer"])
def test_a_layer_called_by_parts_must_be_plain(kind: type[SEDD], change: str):
    model = as_class(kind, tiny())
    CHANGES[change](model)
    with pytest.raises(ValueError, match="override _from_output instead"):
        model(*batch(model)[:2])


def test_a_forward_that_was_replaced_before_is_not_recorded(monkeypatch):
    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    overrides.record(Layer, "forward")
    assert overrides.is_plain(Layer(2, 2), Layer)
    monkeypatch.setattr(Layer, "forward", prune.identity)  # of another module
    overrides.record(Layer, "forward")
    assert not overrides.is_plain(Layer(2, 2), Layer)


def test_a_changed_network_is_not_saved(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for change in ("lora", "spectral norm", "pruning", "a quantised weight"):
            model = changed(change)
            if change == "a quantised weight":  # a buffer of a subclass, not a plain attribute
                weight = model.output_layer.linear.weight
                model.output_layer.linear.weight = nn.Parameter(weight)
            with pytest.raises(ValueError, match="load the result into a new network"):
                model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()

    class Other(SEDD):
        def __init__(self, config: sf.SEDDConfig, bias: bool) -> None:
            super().__init__(config)
            self.more = nn.Linear(2, 2, bias=bias)

    Other(tiny().config, True).save_pretrained(tmp_path / "saved")


def test_a_step_at_listed_rows_keeps_the_others():
    model = changed("lora")
    x_t, sigma, _, _ = batch(model)
    masked = (x_t.flatten() == 11).nonzero().squeeze(-1)
    rows = sf.ops.TouchedRows.at(masked[:3])
    u = torch.rand(4, 12, 2, dtype=torch.float64, generator=seeded())
    with torch.no_grad():
        after = model(x_t, sigma, ReverseStepRequest("denoise", None, u, rows)).flatten()
        everywhere = model(x_t, sigma, ReverseStepRequest("denoise", None, u)).flatten()
    assert torch.equal(after[masked[:3]], everywhere[masked[:3]])
    assert (after[masked[3:]] == 11).all()


def test_adapters_learn_and_hooks_of_the_backward_run():
    model = changed("lora")
    x_0 = batch(model)[2]
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    objective(model, x_0).backward()
    head = model.output_layer.linear
    assert head.a.grad.any()
    assert head.b.grad.any()
    assert head.base.weight.grad is None
    model, seen = tiny(), []
    model.output_layer.linear.register_full_backward_hook(lambda *args: seen.append(args[0]))
    objective(model, x_0).backward()
    assert seen == [model.output_layer.linear]


def test_a_pruned_head_takes_several_steps():
    model = changed("pruning")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(3):
        sf.ScoreEntropyLoss(model.graph, model.noise, "mean")(model, batch(model)[2]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert int((model.output_layer.linear.weight == 0).sum()) >= 12 * 16 // 2


def test_a_hook_sees_the_output_of_the_layer_as_it_is():
    """Log scores are formed in place of a plain layer's output, not of one that somebody holds."""
    model = tiny().eval()
    x_t, sigma, _, _ = batch(model)
    kept: list[Tensor] = []
    model.output_layer.register_forward_hook(lambda module, inputs, out: kept.append(out))
    with torch.no_grad():
        model(x_t, sigma)
        expected = model.output_layer.linear(model.features(x_t, sigma))
    torch.testing.assert_close(kept[0], expected)


def test_wrappers_of_torch_and_accelerate_keep_the_fused_head(calls: list[str]):
    model = tiny()
    x_0 = batch(model)[2]
    objective = sf.ScoreEntropyLoss(model.graph, model.noise, "mean")
    # What Accelerator.prepare does to a network for mixed precision.
    autocast = torch.autocast("cpu", torch.bfloat16)(SEDD.forward)
    model.forward = MethodType(convert_outputs_to_fp32(autocast), model)
    objective(model, x_0).backward()
    assert calls == ["linear_score_entropy_with_grad"]
    gradients(model)


def test_a_quantised_network_samples_and_has_a_bound():
    model = tiny().eval()
    x_0 = batch(model)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        except (AttributeError, RuntimeError) as error:
            pytest.skip(f"no dynamic quantisation: {error}")
        for method in ("analytic", "hit"):
            tokens = sf.sample(quantised, model.graph, model.noise, (2, 12), 4, method)
            assert bool((tokens < 11).all())
        bounds = [
            sf.likelihood_bound(m, x_0, model.graph, model.noise, 16, generator=seeded()).nats
            for m in (quantised, model)
        ]
    torch.testing.assert_close(*bounds, rtol=0.1, atol=0)
    assert not torch.equal(*bounds)
    assert not takes_request(quantised, model.graph, ReverseStepRequest)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_the_head_may_be_sharded_by_itself(one_process, calls: list[str]):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, t = init_device_mesh("cpu", (1,)), torch.linspace(0.2, 0.9, 4)
    plain = tiny()
    x_t, _, x_0, _ = batch(plain)
    objective = sf.ScoreEntropyLoss(plain.graph, plain.noise, "mean")
    expected = objective(plain, x_0, t=t, x_t=x_t)
    expected.backward()
    weight = plain.output_layer.linear.weight.grad
    for part in ("output_layer", "output_layer.linear", "blocks.0"):
        model = tiny()
        fully_shard(model.get_submodule(part), mesh=mesh)
        fully_shard(model, mesh=mesh)
        calls.clear()
        loss = objective(model, x_0, t=t, x_t=x_t)
        assert calls == (
            ["linear_score_entropy_with_grad"] if "blocks" in part else ["score_entropy"]
        )
        torch.testing.assert_close(loss, expected)
        loss.backward()
        got = model.output_layer.linear.weight.grad.full_tensor()
        torch.testing.assert_close(got, weight)
        with torch.no_grad():
            tokens = sf.sample(model, plain.graph, plain.noise, (2, 12), 2)
        assert bool((tokens < 11).all())
