"""Operations in torch's dispatcher: one opaque node each, without importing the compiler."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import make_inputs
from sedd_fast.backends import reference
from sedd_fast.ops._operator import operator

CALL = """
import sys, torch, sedd_fast as sf
x, graph = torch.tensor([[5, 1]]), sf.Absorbing(5)
scores = torch.zeros(1, 2, 6, requires_grad=True)
sf.score_entropy(scores, 1.0, x, x % 5, graph, reduction="sum").backward()
sf.reverse_step(scores, x, 1.0, 0.1, graph)
assert "torch._dynamo" not in sys.modules
"""


def test_an_eager_call_does_not_import_the_compiler():
    """The import would add about a second to the first call."""
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_implementation_is_not_traced_where_its_operator_runs_eagerly(monkeypatch):
    """torch.compile runs a frame eagerly that it cannot trace, and still traces its callees."""
    traced: list[bool] = []
    true = reference.sample_transition

    def watched(noising):
        traced.append(torch.compiler.is_compiling())
        return true(noising)

    monkeypatch.setattr(reference, "sample_transition", watched)

    @torch._dynamo.disable(recursive=False)
    def given_up(x_0: Tensor, sigma: Tensor, u: Tensor) -> Tensor:
        return torch.ops.sedd_fast.sample_transition(x_0, sigma, u, "uniform", 11)

    inputs = make_inputs(sf.Uniform(11))
    compiled = torch.compile(lambda *args: given_up(*args) + 0, backend="eager")
    with sf.use_backend("reference"):
        x_t = compiled(inputs.x_0, inputs.sigma, inputs.u)
        assert torch.equal(x_t, given_up(inputs.x_0, inputs.sigma, inputs.u))
    assert traced == [False, False]


@pytest.fixture(scope="module")
def doubled():
    """An operator with a gradient that notes when the gradient is recorded."""

    @operator("test_doubled")
    def double(x: Tensor, label: str) -> tuple[Tensor, Tensor]:
        return x * 2, x.detach().clone()

    @double.register_fake
    def _(x, label):
        return torch.empty_like(x), torch.empty_like(x)

    def setup(ctx, inputs, output):
        ctx.label = inputs[1]
        ctx.mark_non_differentiable(output[1])

    def backward(ctx, grad, _):
        assert ctx.label == "here"
        return grad * 2, None

    double.register_autograd(backward, setup_context=setup)
    return double


def test_a_gradient_is_recorded_only_where_it_is_required(doubled):
    leaf = torch.ones(3, requires_grad=True)
    result, copy = doubled(leaf, "here")
    assert result.requires_grad
    assert not copy.requires_grad
    result.sum().backward()
    assert leaf.grad.tolist() == [2.0, 2.0, 2.0]
    with torch.no_grad():
        assert not doubled(leaf, "here")[0].requires_grad
    assert not doubled(leaf.detach(), "here")[0].requires_grad


def test_both_entries_of_an_operator_pass_opcheck(doubled):
    for name, leaf in (("test_doubled", True), ("test_doubled_kernel", False)):
        arguments = (torch.ones(3, requires_grad=leaf), "here")
        torch.library.opcheck(getattr(torch.ops.sedd_fast, name).default, arguments)
