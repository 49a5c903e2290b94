"""The operations on a linear head as opaque nodes: opcheck, torch.compile, torch.export."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import HEADS, Head, make_head, on_heads
from helpers.op_cases import Backend, graph_id
from sedd_fast.backends import registry
from sedd_fast.ops._arguments import process

pytestmark = [
    *on_heads,
    pytest.mark.operation("linear_score_entropy"),
    pytest.mark.any_backend,
    pytest.mark.usefixtures("fresh_compiler"),
]
OPS = torch.ops.sedd_fast
#: For tests that compile slowly: a graph whose rows are compacted, and one whose rows are not.
by_kind = pytest.mark.parametrize(
    ("graph", "scaled"), [HEADS[0], HEADS[2]], ids=lambda v: graph_id(v) or str(v)
)
#: Each kind and each reduction once: a reduction chooses the operation, a kind its arguments.
by_either = pytest.mark.parametrize(
    ("graph", "scaled", "reduction"),
    [(*HEADS[0], "none"), (*HEADS[2], "mean")],
    ids=lambda v: graph_id(v) or str(v),
)
#: The checks of opcheck that look at results.
METADATA = ("test_schema", "test_faketensor")
NAMES = (
    "linear_score_entropy",
    "linear_score_entropy_backward",
    "linear_score_entropy_with_grad",
    "linear_reverse_step",
)


def op_arguments(head: Head, name: str, rows: Tensor | None, needs: list[bool]) -> tuple[Any, ...]:
    """Arguments of an operation of torch.library; the dtype of autocast is float32."""
    i = head.inputs
    graph = process(i.graph)
    code = registry.implementation("linear_score_entropy", head.hidden, graph[0])[1].tensor()
    computed = (rows, head.hidden.dtype, 4000)
    linear, detached = (*head.operands, *computed), (*map(detach, head.operands), *computed)
    entropy = (i.sigma, i.x_t, i.x_0, i.row_weight, *graph, head.scale_by_sigma)
    if name == "linear_reverse_step":
        settings = (*graph, "analytic", head.scale_by_sigma, 0.7, 0.9)
        return (*detached, i.x_t, i.sigma, i.dsigma, i.u, *settings)
    if name == "linear_score_entropy":
        return (*linear, *entropy)
    if name == "linear_score_entropy_with_grad":
        return (*linear, *entropy, 0.5, *needs)
    upstream = i.row_weight.to(torch.promote_types(head.hidden.dtype, torch.float32))
    return (upstream, *detached, *entropy, code, *needs)


def detach(operand: Tensor | None) -> Tensor | None:
    return None if operand is None else operand.detach()


@pytest.mark.parametrize("name", NAMES)
@by_kind
def test_opcheck(backend: Backend, graph, scaled, name):
    head = make_head(graph, scaled, shape=(2, 3), width=4, device=backend.device)
    spread = replace(
        head,
        hidden=head.hidden.transpose(0, 1).contiguous().transpose(0, 1),
        weight=head.weight.t().contiguous().t(),
    )
    rows = sf.touched_rows(head.inputs.x_t, graph, max_rows=4).index
    checks = METADATA  # the traces with rows and without a bias suffice
    for given, listed in ((head, None), (spread, rows), (replace(head, bias=None), None)):
        arguments = op_arguments(given.leaves(), name, listed, [True, True, given.bias is not None])
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=checks)
        checks = backend.opchecks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fake_results_have_the_dtypes_of_real_ones(backend: Backend, name, dtype):
    head = make_head(sf.Absorbing(11), True, dtype, (2, 3), width=4, device=backend.device)
    mixed = replace(head, hidden=head.hidden.bfloat16(), weight=head.weight.float())
    for given in (head, mixed):
        for needs in ([True, True, True], [False, True, False], [True, False, True]):
            arguments = op_arguments(given, name, None, needs)
            torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=METADATA)


def body(x: Tensor, head: Head, reduction: str, max_rows: int | None = None) -> Tensor:
    """A linear layer, the operation, and arithmetic after it."""
    i = head.inputs
    hidden = torch.tanh(F.linear(x, torch.eye(x.shape[-1], device=x.device)))
    rows = None
    if max_rows is not None:
        rows = sf.touched_rows(i.x_t, i.graph, i.row_weight, max_rows=max_rows)
    loss = replace(head, hidden=hidden).entropy(reduction, rows=rows)
    return (loss * 2).mean()


def backward(function: Any, head: Head, *rest: Any) -> list[Tensor]:
    leaves = head.leaves()
    loss = function(leaves.hidden, leaves, *rest)
    loss.backward()
    return [loss.detach(), *(x.grad for x in leaves.operands)]


@by_either
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_equals_eager(kernels: Backend, graph, scaled, reduction, autocast):
    head = make_head(graph, scaled, device=kernels.device)
    compiled = torch.compile(body, fullgraph=True, backend="aot_eager")
    with torch.autocast(kernels.device, torch.bfloat16, enabled=autocast):
        for got, expected in zip(
            backward(compiled, head, reduction), backward(body, head, reduction), strict=True
        ):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.not_in_smoke
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_generated_code_around_the_operation(kernels: Backend, reduction):
    head = make_head(sf.Absorbing(11), True, device=kernels.device)
    compiled = torch.compile(body, fullgraph=True)
    for got, expected in zip(
        backward(compiled, head, reduction), backward(body, head, reduction), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@by_either
def test_a_fixed_number_of_rows_compiles(kernels: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=kernels.device)
    compiled = torch.compile(body, fullgraph=True, backend="aot_eager")
    expected = backward(body, head, reduction)
    for got, true in zip(backward(compiled, head, reduction, 24), expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)
    loss, *gradients = backward(compiled, head, reduction, 2)
    assert bool(loss.isnan())
    assert not any(x.any() for x in gradients)


@by_kind
def test_a_dynamic_batch_compiles_once(kernels: Backend, graph, scaled):
    compiled = torch.compile(body, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 8), (5, 8), (2, 6)):
            head = make_head(graph, scaled, shape=shape, device=kernels.device)
            expected = backward(body, head, "none")
            for got, true in zip(backward(compiled, head, "none"), expected, strict=True):
                torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("graph", "scaled", "method"),
    [(*HEADS[0], "analytic"), (*HEADS[0], "denoise"), (*HEADS[2], "euler")],
    ids=lambda v: graph_id(v) or str(v),
)
def test_a_compiled_step_equals_eager(kernels: Backend, graph, scaled, method):
    head = make_head(graph, scaled, device=kernels.device)
    compiled = torch.compile(
        lambda h: replace(h, hidden=h.hidden * 1).step(method) + 0,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(head), head.step(method))


@by_kind
def test_export(kernels: Backend, graph, scaled):
    class Step(torch.nn.Module):
        def forward(self, hidden, weight, sigma, x_t, x_0, u):
            loss = sf.linear_score_entropy(hidden, weight, None, sigma, x_t, x_0, graph, scaled)
            step = sf.linear_reverse_step(
                hidden, weight, None, x_t, sigma, 0.1, graph, scale_by_sigma=scaled, u=u
            )
            return loss, step

    def arguments(batch: int) -> tuple[Tensor, ...]:
        head = make_head(graph, scaled, shape=(batch, 4), device=kernels.device)
        i = head.inputs
        return head.hidden, head.weight, i.sigma, i.x_t, i.x_0, i.u

    batch = torch.export.Dim("batch")
    dynamic = tuple({} if n == 1 else {0: batch} for n in range(6))
    program = torch.export.export(Step(), arguments(3), dynamic_shapes=dynamic)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("sedd_fast" in name for name in names) == 2
    for got, expected in zip(program.module()(*arguments(5)), Step()(*arguments(5)), strict=True):
        assert torch.equal(got, expected)
