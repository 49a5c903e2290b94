"""Hooks on networks, and wrappers of them that change scores: they see log scores, no request."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.modules import module
from torch.optim.swa_utils import AveragedModel

import sedd_fast as sf
from helpers.tiny_models import batch, tiny
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import takes_request
from sedd_fast.models.posterior import PosteriorModel
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD


class Halving(AveragedModel):
    def forward(self, *inputs: Any) -> Tensor:
        return super().forward(*inputs) / 2


class Delegating(nn.Module):
    """A user's wrapper that hands on what it does not have, `head_requests` too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        inner = self._modules["inner"]
        return inner if name == "inner" else getattr(inner, name)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.inner(x, sigma) / 2


class Declaring(nn.Module):
    def __init__(self, inner: SEDD) -> None:
        super().__init__()
        self.inner, self.graph, self.head_requests = inner, inner.graph, inner.head_requests

    def forward(self, *inputs: Any) -> Tensor:
        return self.inner(*inputs)


class DelegatingObject:
    def __init__(self, inner: SEDD) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.inner(x, sigma) / 2


def hooked(module: nn.Module, kind: str = "forward_hook") -> nn.Module:
    hooks = {
        "forward_hook": lambda module, inputs, out: out / 2,
        "forward_pre_hook": lambda module, inputs: (inputs[0], 2 * inputs[1]),
    }
    getattr(module, f"register_{kind}")(hooks[kind])
    return module


def own_forward(module: nn.Module) -> nn.Module:
    forward = module.forward
    module.forward = lambda *inputs: forward(*inputs) / 2
    return module


WRAPPERS: dict[str, Callable[[SEDD], Any]] = {
    "subclass of a wrapper": Halving,
    "hook on AveragedModel": lambda m: hooked(AveragedModel(m)),
    "pre-hook on AveragedModel": lambda m: hooked(AveragedModel(m), "forward_pre_hook"),
    "hook on CheckpointWrapper": lambda m: hooked(checkpoint_wrapper(m)),
    "hook on OptimizedModule": lambda m: hooked(torch.compile(m, backend="eager")),
    "hook between wrappers": lambda m: checkpoint_wrapper(hooked(AveragedModel(m))),
    "hook on a user's wrapper": lambda m: hooked(Declaring(m)),
    "forward of an instance": lambda m: own_forward(AveragedModel(m)),
    "delegating": Delegating,
    "delegating object": DelegatingObject,
    "delegating, around a wrapper": lambda m: Delegating(AveragedModel(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_that_change_scores_are_asked_for_scores(wrapper: str, calls: list[str]):
    wrapped = WRAPPERS[wrapper](tiny().eval())
    model = tiny().eval()
    x_t, _, x_0, _ = batch(model)
    t = torch.linspace(0.2, 0.9, 4)
    for kind in (sf.ScoreEntropyLoss, sf.MaskedCrossEntropy):
        objective = kind(model.graph, model.noise, "mean")
        loss = objective(wrapped, x_0, t=t, x_t=x_t)
        torch.testing.assert_close(loss, objective(lambda *x: wrapped(*x), x_0, t=t, x_t=x_t))
        assert not torch.isclose(loss, objective(model, x_0, t=t, x_t=x_t), rtol=1e-4)
    calls.clear()
    sf.sample(wrapped, model.graph, model.noise, (4, 12), 2)
    assert "linear_reverse_step" not in calls


def test_global_hooks_and_posterior_models():
    model = tiny()
    for network in (PosteriorModel(model, model.graph), PosteriorSEDD(model.config), model):
        assert takes_request(network, model.graph, CrossEntropyRequest)
        for register in (
            network.register_forward_pre_hook,
            network.register_forward_hook,
            network.register_full_backward_hook,
            module.register_module_forward_pre_hook,
            module.register_module_forward_hook,
        ):
            handle = register(lambda *args: None)
            assert not takes_request(network, model.graph, CrossEntropyRequest)
            handle.remove()

        class Called(type(network)):
            def __call__(self, *inputs: Any) -> Any:
                return super().__call__(*inputs)

        network.__class__ = Called
        assert not takes_request(network, model.graph, CrossEntropyRequest)
