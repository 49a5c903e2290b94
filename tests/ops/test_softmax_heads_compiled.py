"""linear_cross_entropy and linear_denoise as opaque nodes: opcheck, torch.compile, torch.export."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import on_heads
from helpers.op_cases import Backend
from helpers.softmax_cases import SoftmaxHead, make_softmax_head
from sedd_fast.backends import registry

pytestmark = [
    *on_heads,
    pytest.mark.operation("linear_cross_entropy"),
    pytest.mark.any_backend,
    pytest.mark.usefixtures("fresh_compiler"),
]
OPS = torch.ops.sedd_fast
#: The checks of opcheck that look at results.
METADATA = ("test_schema", "test_faketensor")
NAMES = (
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_with_grad",
    "linear_denoise",
)


def small(backend: Backend, dtype: torch.dtype = torch.float32, **rest: Any) -> SoftmaxHead:
    rest = {"excluded": (4,), "softcap": 6.0, "z_loss": 0.01, "width": 4, **rest}
    return make_softmax_head(11, dtype, (2, 3), device=backend.device, **rest)


def op_arguments(
    head: SoftmaxHead, name: str, rows: Tensor | None, needs: list[bool]
) -> tuple[Any, ...]:
    """Arguments of an operation of torch.library; the dtype of autocast is float32."""
    computed = (rows, head.hidden.dtype, 4000)
    detached = [None if x is None else x.detach() for x in head.operands]
    linear, detached = (*head.operands, *computed), (*detached, *computed)
    rest = (list(head.excluded), head.softcap or 0.0)
    if name == "linear_denoise":
        top, entropy, embedding = needs
        u = head.u if top else None
        return (*detached, u, 0.7, 0.9, *rest, top, entropy, embedding)
    entropy = (head.target, head.factor(), *rest, head.z_loss)
    if name == "linear_cross_entropy":
        return (*linear, *entropy)
    if name == "linear_cross_entropy_with_grad":
        return (*linear, *entropy, *needs)
    code = registry.implementation("linear_cross_entropy", head.hidden, "")[1].tensor()
    upstream = torch.ones_like(head.factor()).to(head.loss_dtype)
    log_sum = head.to(torch.float64).logits().logsumexp(-1)
    return (upstream, *detached, *entropy, log_sum, code, *needs)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(backend: Backend, name):
    head = small(backend)
    spread = replace(
        head,
        hidden=head.hidden.transpose(0, 1).contiguous().transpose(0, 1),
        weight=head.weight.t().contiguous().t(),
    )
    # Every row: what is NaN, as the results of others are, would differ from itself.
    rows = torch.tensor([5, 0, 2, -1, 4, 1, 3], device=backend.device)
    checks = METADATA  # the traces with rows and without a bias suffice
    for given, listed in ((head, None), (spread, rows), (replace(head, bias=None), None)):
        arguments = op_arguments(given.leaves(), name, listed, [True, True, given.bias is not None])
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=checks)
        checks = backend.opchecks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fake_results_have_the_dtypes_of_real_ones(backend: Backend, name, dtype):
    head = small(backend, dtype)
    mixed = replace(head, hidden=head.hidden.bfloat16(), weight=head.weight.float())
    for given in (head, mixed):
        for needs in ([True, True, True], [False, True, False], [True, False, True]):
            arguments = op_arguments(given, name, None, needs)
            torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=METADATA)


def body(x: Tensor, head: SoftmaxHead, reduction: str, max_rows: int | None = None) -> Tensor:
    """A linear layer, the operation, and arithmetic after it."""
    hidden = torch.tanh(F.linear(x, torch.eye(x.shape[-1], device=x.device)))
    rows = None
    if max_rows is not None:
        graph = sf.Uniform(len(head.weight))
        rows = sf.touched_rows(head.target.clamp(min=0), graph, head.row_weight, max_rows)
    loss = replace(head, hidden=hidden).entropy(reduction, rows=rows)
    return (loss * 2).mean()


def backward(function: Any, head: SoftmaxHead, *rest: Any) -> list[Tensor]:
    leaves = head.leaves()
    loss = function(leaves.hidden, leaves, *rest)
    loss.backward()
    return [loss.detach(), *(x.grad for x in leaves.operands)]


@pytest.mark.parametrize(("reduction", "autocast"), [("none", False), ("mean", True)])
def test_compiled_equals_eager(kernels: Backend, reduction, autocast):
    head = small(kernels)
    compiled = torch.compile(body, fullgraph=True, backend="aot_eager")
    with torch.autocast(kernels.device, torch.bfloat16, enabled=autocast):
        for max_rows in (None, 6):
            expected = backward(body, head, reduction, max_rows)
            for got, true in zip(
                backward(compiled, head, reduction, max_rows), expected, strict=True
            ):
                assert got.dtype == true.dtype
                torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)
    loss, *gradients = backward(compiled, head, reduction, 1)
    assert bool(loss.isnan())
    assert not any(x.any() for x in gradients)


def test_a_dynamic_batch_compiles_once(kernels: Backend):
    compiled = torch.compile(body, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 8), (5, 8), (2, 6)):
            head = make_softmax_head(11, shape=shape, device=kernels.device)
            expected = backward(body, head, "mean")
            for got, true in zip(backward(compiled, head, "mean"), expected, strict=True):
                torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)


def test_a_compiled_step_equals_eager(kernels: Backend):
    head = small(kernels)
    compiled = torch.compile(
        lambda h: replace(h, hidden=h.hidden * 1).denoise(top_p=0.9),
        fullgraph=True,
        backend="aot_eager",
    )
    for got, expected in zip(compiled(head), head.denoise(top_p=0.9), strict=True):
        assert torch.equal(got, expected)


def test_export(kernels: Backend):
    class Step(torch.nn.Module):
        def forward(self, hidden, weight, target, u):
            loss = sf.linear_cross_entropy(hidden, weight, None, target, excluded=(4,))
            out = sf.linear_denoise(hidden, weight, None, u, want=("token", "entropy"))
            return loss, out.token, out.entropy

    def arguments(batch: int) -> tuple[Tensor, ...]:
        head = make_softmax_head(11, shape=(batch, 4), excluded=(4,), device=kernels.device)
        return head.hidden, head.weight, head.target, head.u

    batch = torch.export.Dim("batch")
    dynamic = tuple({} if n == 1 else {0: batch} for n in range(4))
    program = torch.export.export(Step(), arguments(3), dynamic_shapes=dynamic)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("sedd_fast" in name for name in names) == 2
    for got, expected in zip(program.module()(*arguments(5)), Step()(*arguments(5)), strict=True):
        assert torch.equal(got, expected)
