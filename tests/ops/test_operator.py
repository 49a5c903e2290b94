"""Operations in torch's dispatcher: one opaque node each, without importing the compiler."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import sedd_fast as sf
from helpers.op_cases import make_inputs
from sedd_fast.backends import reference
from sedd_fast.backends.inputs import NO_MASK
from sedd_fast.ops._operator import operator

X_T = torch.tensor([[5, 1]])

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
        return torch.ops.sedd_fast.sample_transition(x_0, sigma, u, "uniform", 11, NO_MASK)

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


@pytest.fixture
def entropy(monkeypatch):
    """A loss of scores, and the names of the calls that reached the dispatcher."""
    seen: list[str] = []
    op = importlib.import_module("sedd_fast.ops.score_entropy").score_entropy_op
    for entry in ("_entry", "_kernel"):
        true = getattr(op, entry)
        monkeypatch.setattr(op, entry, lambda *a, true=true: seen.append(str(true)) or true(*a))

    def loss(log_score: Tensor) -> Tensor:
        return sf.score_entropy(log_score, 1.0, X_T, X_T % 5, sf.Absorbing(5))

    return loss, seen


def traced(loss, scores):
    return torch.jit.trace(loss, scores, check_trace=False)(scores)


def under_a_mode(loss, scores):
    with FlopCounterMode(display=False):
        return loss(scores)


def under_a_function_mode(loss, scores):
    with torch.device("meta"):
        return loss(scores)


def batched(loss, scores):
    return torch.vmap(loss)(scores[None])[0]


def of_a_subclass(loss, scores):
    class Scores(Tensor):
        pass

    return loss(scores.as_subclass(Scores)).as_subclass(Tensor)


def profiled(loss, scores):
    with torch.profiler.profile() as profile:
        found = loss(scores)
    assert "sedd_fast::score_entropy_kernel" in {event.key for event in profile.key_averages()}
    return found


@pytest.mark.parametrize(
    "observed", [traced, under_a_mode, under_a_function_mode, batched, of_a_subclass, profiled]
)
def test_modes_tracers_and_profilers_see_the_call(entropy, observed):
    loss, seen = entropy
    scores = torch.randn(1, 2, 6)
    expected = loss(scores)
    assert seen == []  # nothing is active: the dispatcher is bypassed
    torch.testing.assert_close(observed(loss, scores), expected, rtol=0, atol=0)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "scores",
    [
        torch.randn(1, 2, 6, dtype=torch.complex64).conj().imag,  # the other sign is in memory
        torch._efficientzerotensor((1, 2, 6)),
        torch._to_functional_tensor(torch.randn(1, 2, 6)),
    ],
    ids=["negated", "zero", "functional"],
)
def test_scores_whose_memory_does_not_hold_their_values(entropy, scores):
    loss, _ = entropy
    found, plain = loss(scores), scores.clone()
    if torch._is_functional_tensor(scores):
        found, plain = torch._from_functional_tensor(found), torch._from_functional_tensor(scores)
    torch.testing.assert_close(found, loss(plain), rtol=0, atol=0)


def test_meta_tensors_give_shapes_whatever_the_backend():
    scores, x_t = torch.empty(1, 2, 6, device="meta"), X_T.to("meta")
    with sf.use_backend("cpp"):
        assert sf.score_entropy(scores, 1.0, x_t, x_t, sf.Absorbing(5)).shape == (1, 2)
        head = torch.empty(1, 2, 3, device="meta"), torch.empty(6, 3, device="meta"), None
        process = x_t, x_t, sf.Absorbing(5)
        assert sf.linear_score_entropy(*head, 1.0, *process).shape == (1, 2)
        assert sf.linear_reverse_step(*head, x_t, 1.0, 0.1, sf.Absorbing(5)).shape == (1, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_trace_takes_noise_of_another_dtype(dtype):
    weight = torch.rand(1, 2)

    def loss(log_score: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
        return sf.score_entropy(log_score, sigma, X_T, X_T % 5, sf.Absorbing(5), weight)

    scores, sigma = torch.randn(1, 2, 6), torch.full((1,), 0.5)
    traced = torch.jit.trace(loss, (scores, sigma, weight), check_trace=False)
    given = sigma.to(dtype), weight.to(dtype)
    torch.testing.assert_close(traced(scores, *given), loss(scores, *given))


def test_batched_gradients_equal_single_ones(entropy):
    loss, _ = entropy
    scores = torch.randn(1, 2, 6, requires_grad=True)
    found = loss(scores)
    upstream = torch.rand(3, 1, 2)
    together = torch.autograd.grad(
        found, scores, upstream, is_grads_batched=True, retain_graph=True
    )[0]
    for one, grad in zip(upstream, together, strict=True):
        alone = torch.autograd.grad(found, scores, one, retain_graph=True)[0]
        torch.testing.assert_close(grad, alone)


def test_forward_mode_is_refused_and_not_zero(entropy):
    loss, _ = entropy
    scores = torch.randn(1, 2, 6)
    with pytest.raises(NotImplementedError, match="score_entropy has no forward-mode derivative"):
        torch.func.jvp(loss, (scores,), (torch.ones_like(scores),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scores, torch.ones_like(scores))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            loss(dual)
        loss(scores)
        both = sf.score_entropy_with_grad(dual, 1.0, X_T, X_T % 5, sf.Absorbing(5))  # detached
        assert all(forward_ad.unpack_dual(one).tangent is None for one in both)
