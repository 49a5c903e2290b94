"""The operations as opaque nodes of a graph: opcheck, torch.compile, torch.export."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import GRAPHS, Backend, Inputs, graph_id, make_inputs
from sedd_fast.backends import registry
from sedd_fast.ops._arguments import process

pytestmark = [pytest.mark.any_backend, pytest.mark.usefixtures("fresh_compiler")]
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=graph_id)
OPS = torch.ops.sedd_fast
LAYOUTS = ("contiguous", "transposed")
#: The checks of opcheck that look at results: what is changed in place, dtypes, shapes, strides.
METADATA = ("test_schema", "test_faketensor")


def laid_out(inputs: Inputs, layout: str) -> Inputs:
    """Tensors of shape (B, L, ...) stored with L before B."""
    if layout == "contiguous":
        return inputs
    changed = {
        name: getattr(inputs, name).transpose(0, 1).contiguous().transpose(0, 1)
        for name in ("log_score", "x_t", "x_0", "row_weight", "u")
    }
    return replace(inputs, **changed)


def op_arguments(inputs: Inputs, needs_grad: bool) -> dict[str, tuple[Any, ...]]:
    """Arguments of every operation, backward operations included."""
    graph = process(inputs.graph)
    scores = inputs.log_score.clone().requires_grad_(needs_grad)
    entropy = (inputs.sigma, inputs.x_t, inputs.x_0, inputs.row_weight, *graph, False)
    noise = (inputs.x_t, inputs.sigma, inputs.dsigma)
    probs = (*noise, None, *graph, "analytic", False, 1.0, 1.0)
    code = registry.implementation("score_entropy", inputs.log_score, graph[0])[1].tensor()
    upstream = inputs.row_weight.to(inputs.log_score.dtype)
    return {
        "sample_transition": (inputs.x_0, inputs.sigma, inputs.u, *graph),
        "score_entropy": (scores, *entropy),
        "score_entropy_with_grad": (scores.detach(), *entropy, 0.5),
        "score_entropy_backward": (upstream, scores.detach(), *entropy, code),
        "reverse_step": (
            scores.detach(),
            *noise,
            inputs.u,
            *graph,
            "analytic",
            False,
            0.7,
            0.9,
        ),
        "reverse_probs": (scores, *probs),
        "reverse_probs_backward": (inputs.log_score, scores.detach(), *probs),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(op_arguments(make_inputs(GRAPHS[0]), False)))
@by_graph
@pytest.mark.interpreted(graph=GRAPHS[1:], layout=["contiguous"])
def test_opcheck(backend: Backend, graph: sf.Graph, name, layout):
    """Traced in the harder layout only: the graph of an operation does not depend on it."""
    inputs = laid_out(make_inputs(graph, shape=(2, 3), device=backend.device), layout)
    arguments = op_arguments(inputs, needs_grad=True)[name]
    checks = backend.opchecks if layout == LAYOUTS[-1] else METADATA
    torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_fake_results_have_the_dtypes_of_real_ones(backend: Backend, dtype):
    inputs = make_inputs(GRAPHS[0], dtype, (2, 3), device=backend.device)
    for name, arguments in op_arguments(inputs, needs_grad=False).items():
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=METADATA)


def weighted_loss(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, weight: Tensor, graph: sf.Graph
) -> Tensor:
    """A function with arithmetic before and after the operation."""
    loss = sf.score_entropy(torch.tanh(log_score) * 3, sigma, x_t, x_0, graph, row_weight=weight)
    return (loss * 0.5).sum(-1)


def backward(function: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    leaf = inputs.log_score.detach().clone().requires_grad_()
    loss = function(leaf, *inputs.entropy()[1:4], inputs.row_weight, inputs.graph)
    loss.mean().backward()
    return loss.detach(), leaf.grad


@by_graph
@pytest.mark.interpreted(compiler=["inductor"])
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.not_in_smoke)]
)
def test_compiled_loss_and_gradient_equal_eager(backend: Backend, graph, compiler):
    if compiler == "inductor" and graph.kind == "uniform":
        pytest.skip("one graph suffices: code is generated around the operation, not for it")
    compiled = torch.compile(weighted_loss, fullgraph=True, backend=compiler)
    # Generated code relies on the strides that fake kernels return; this layout is the harder one.
    for layout in LAYOUTS if compiler == "aot_eager" else LAYOUTS[1:]:
        inputs = laid_out(make_inputs(graph, device=backend.device), layout)
        pairs = zip(backward(compiled, inputs), backward(weighted_loss, inputs), strict=True)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@by_graph
@pytest.mark.not_interpreted
def test_a_dynamic_batch_compiles_once(backend: Backend, graph: sf.Graph):
    compiled = torch.compile(weighted_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 8), (5, 8), (2, 6)):
            inputs = make_inputs(graph, shape=shape, device=backend.device)
            pairs = zip(backward(compiled, inputs), backward(weighted_loss, inputs), strict=True)
            for got, expected in pairs:
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "method"),
    [(GRAPHS[0], "analytic"), (GRAPHS[0], "denoise"), (GRAPHS[1], "euler")],
    ids=graph_id,
)
@pytest.mark.interpreted(method=["analytic"])
def test_compiled_step_equals_eager(backend: Backend, graph: sf.Graph, method):
    def step(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        tokens = sf.reverse_step(*inputs.reverse(), method, u=inputs.u)
        probs = sf.reverse_probs(*inputs.reverse(), method)
        noised = sf.sample_transition(inputs.x_0, inputs.sigma, graph, u=inputs.u)
        return tokens + 0, probs * 1, noised + 0

    inputs = make_inputs(graph, device=backend.device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(inputs), step(inputs), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.not_interpreted
def test_compiled_step_at_any_temperature_and_top_p(backend: Backend):
    """The numbers change from call to call."""

    def step(temperature: float, top_p: float) -> Tensor:
        token_filter = {"temperature": temperature, "top_p": top_p}
        return sf.reverse_step(*inputs.reverse(), "denoise", u=inputs.u, **token_filter) + 0

    inputs = make_inputs(GRAPHS[0], device=backend.device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for token_filter in ((1.0, 1.0), (0.7, 0.9), (3.0, 0.5)):
        assert torch.equal(compiled(*token_filter), step(*token_filter))


@pytest.mark.not_interpreted
def test_uniforms_are_drawn_inside_a_compiled_step(backend: Backend):
    inputs = make_inputs(sf.Uniform(11), shape=(2, 50), device=backend.device)
    compiled = torch.compile(
        lambda: sf.reverse_step(*inputs.reverse()), fullgraph=True, backend="aot_eager"
    )
    first, second = compiled(), compiled()
    assert not torch.equal(first, second)


def test_score_entropy_with_grad_compiles(backend: Backend):
    inputs = make_inputs(sf.Absorbing(11), device=backend.device)
    compiled = torch.compile(sf.score_entropy_with_grad, fullgraph=True, backend="aot_eager")
    expected = sf.score_entropy_with_grad(*inputs.entropy(), inputs.row_weight, "mean")
    got = compiled(*inputs.entropy(), inputs.row_weight, "mean")
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_function_uses_the_backend_selected_when_it_is_called(monkeypatch):
    calls = []
    for name in ("reference", "cpp"):
        if registry.unavailable(name):
            pytest.skip(f"{name}: {registry.unavailable(name)}")
        for op in ("score_entropy", "score_entropy_backward"):
            monkeypatch.setattr(
                registry.module(name), op, spy(getattr(registry.module(name), op), name, op, calls)
            )
    compiled = torch.compile(weighted_loss, fullgraph=True, backend="aot_eager")
    inputs = make_inputs(sf.Absorbing(11))
    for name in ("reference", "cpp", "reference"):
        calls.clear()
        with sf.use_backend(name):
            backward(compiled, inputs)
        assert calls == [(name, "score_entropy"), (name, "score_entropy_backward")]


def spy(function: Any, name: str, op: str, calls: list[tuple[str, str]]) -> Any:
    def watched(*args: Any) -> Any:
        calls.append((name, op))
        return function(*args)

    return watched


@by_graph
@pytest.mark.not_interpreted
def test_export(backend: Backend, graph: sf.Graph):
    class Step(torch.nn.Module):
        def forward(self, log_score, sigma, x_t, x_0, u):
            loss = sf.score_entropy(log_score, sigma, x_t, x_0, graph)
            return loss, sf.reverse_step(log_score, x_t, sigma, 0.1, graph, u=u)

    def arguments(batch: int) -> tuple[Tensor, ...]:
        i = make_inputs(graph, shape=(batch, 4), device=backend.device)
        return i.log_score, i.sigma, i.x_t, i.x_0, i.u

    batch = torch.export.Dim("batch")
    program = torch.export.export(Step(), arguments(3), dynamic_shapes=({0: batch},) * 5)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("sedd_fast" in name for name in names) == 2
    for got, expected in zip(program.module()(*arguments(5)), Step()(*arguments(5)), strict=True):
        assert torch.equal(got, expected)


def test_a_mask_among_the_tokens(backend: Backend):
    """opcheck, and a compiled loss without a break in its graph, whose graph is an argument."""
    if backend.name != "cpp":
        pytest.skip("the code around the operation is the same for every backend")
    i = make_inputs(sf.Absorbing(11, 4))
    torch.library.opcheck(OPS.score_entropy.default, op_arguments(i, True)["score_entropy"])

    def loss(scores: Tensor, graph: sf.Absorbing) -> Tensor:
        x_t = sf.sample_transition(i.x_0, i.sigma, graph, u=i.u)
        return sf.score_entropy(scores, i.sigma, x_t, i.x_0, graph, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(i.log_score, i.graph), loss(i.log_score, i.graph))
