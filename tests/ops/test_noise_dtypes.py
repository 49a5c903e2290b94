"""Noise and weights in float32: same results as in float64, without a conversion."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sedd_fast as sf
from helpers.op_cases import GRAPHS, METHODS, Backend, Inputs, make_inputs


def inputs_of(graph: sf.Graph, device: str) -> tuple[Inputs, Inputs]:
    """Inputs with noise and weights in float32, and with the same values in float64."""
    made = make_inputs(graph, shape=(2, 3), device=device)
    names = ("sigma", "dsigma", "row_weight")
    fp32 = {name: getattr(made, name).float() for name in names}
    fp64 = {name: value.double() for name, value in fp32.items()}
    return replace(made, **fp32), replace(made, **fp64)


def gradient(inputs: Inputs) -> tuple[Tensor, Tensor]:
    scores = inputs.log_score.clone().requires_grad_()
    _, *rest = inputs.entropy()
    loss = sf.score_entropy(scores, *rest, row_weight=inputs.row_weight)
    loss.sum().backward()
    assert scores.grad is not None
    return loss.detach(), scores.grad


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_losses_are_those_of_the_same_values_in_float64(backend: Backend, graph):
    fp32, fp64 = inputs_of(graph, backend.device)
    for a, b in zip(gradient(fp32), gradient(fp64), strict=True):
        assert torch.equal(a, b)
    both = [sf.score_entropy_with_grad(*i.entropy(), row_weight=i.row_weight) for i in (fp32, fp64)]
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_draws_are_those_of_the_same_values_in_float64(backend: Backend, graph, method):
    fp32, fp64 = inputs_of(graph, backend.device)
    steps = [sf.reverse_step(*i.reverse(), method=method, u=i.u) for i in (fp32, fp64)]
    assert torch.equal(*steps)
    assert torch.equal(*(sf.reverse_probs(*i.reverse(), method=method) for i in (fp32, fp64)))
    assert torch.equal(*(sf.sample_transition(i.x_0, i.sigma, graph, u=i.u) for i in (fp32, fp64)))


class Conversions(TorchDispatchMode):
    """Counts tensors that change their dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_kernels_that_load_float32_receive_float32(gpu: Backend):
    if gpu.name != "triton":
        pytest.skip("CUDA C++ kernels take float64")
    inputs, _ = inputs_of(GRAPHS[0], gpu.device)
    with Conversions() as seen:
        sf.score_entropy(*inputs.entropy(), row_weight=inputs.row_weight)
        sf.score_entropy_with_grad(*inputs.entropy(), row_weight=inputs.row_weight)
        sf.reverse_step(*inputs.reverse(), u=inputs.u)
        sf.sample_transition(inputs.x_0, inputs.sigma, inputs.graph, u=inputs.u)
    assert seen.count == 0
