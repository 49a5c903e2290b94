"""linear_score_entropy: truth, gradients, reductions, rows, layouts, edges of memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import HEADS, Head, assert_close_to_truth, make_head, on_heads, run
from helpers.op_cases import DTYPES, Backend, graph_id

SIGMAS = (1e-5, 0.05, 1.0, 20.0)
REDUCTIONS = ("none", "sum", "mean")
pytestmark = [*on_heads, pytest.mark.operation("linear_score_entropy")]
by_head = pytest.mark.parametrize(("graph", "scaled"), HEADS, ids=lambda v: graph_id(v) or str(v))
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check(head: Head, **rest) -> None:
    """Check every reduction, with upstream gradients other than 1."""
    i = head.inputs
    upstream = torch.linspace(-1, 2, i.x_t.numel(), dtype=torch.float64).view(i.x_t.shape)
    upstream = upstream.to(i.x_t.device)
    each = run(head, "none", upstream.to(loss_dtype(head)), **rest)
    assert_close_to_truth(named(each, head), head, upstream)
    for reduction, factor in (("sum", 0.5), ("mean", 3.0)):
        scalar = run(head, reduction, torch.tensor(factor, dtype=loss_dtype(head)), **rest)
        scale = factor / (i.x_t.numel() if reduction == "mean" else 1)
        gradients = named(scalar, head)
        del gradients["loss"]
        assert_close_to_truth(gradients, head, torch.full_like(upstream, scale))
        total = each.loss.double().sum() * scale / factor
        torch.testing.assert_close(scalar.loss.double(), total, rtol=1e-6, atol=1e-6)


def named(results, head: Head) -> dict[str, Tensor]:
    got = dict(results.named())
    if head.bias is None:
        del got["bias"]
    return got


def loss_dtype(head: Head) -> torch.dtype:
    return torch.float64 if head.hidden.dtype == torch.float64 else torch.float32


@pytest.mark.interpreted_head(sigma=(1e-5,))
@pytest.mark.parametrize("sigma", SIGMAS)
@by_dtype
@by_head
def test_truth_at_every_noise_level(backend: Backend, graph, scaled, dtype, sigma):
    check(make_head(graph, scaled, dtype, sigma=sigma, device=backend.device))


#: Around the width of a block: 1008 states in float32, 504 in float64, 2016 in the half dtypes.
@pytest.mark.interpreted_head(kind=("scaled", "uniform"), vocabulary=(2, 17))
@pytest.mark.parametrize("vocabulary", [2, 3, 17, 504, 1009, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["scaled", "absorbing", "uniform"])
def test_truth_at_odd_vocabularies(backend: Backend, kind, dtype, vocabulary):
    graph = sf.Uniform(vocabulary) if kind == "uniform" else sf.Absorbing(vocabulary)
    check(make_head(graph, kind == "scaled", dtype, (2, 5), width=7, device=backend.device))


@pytest.mark.interpreted_float16
@pytest.mark.interpreted_head
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@by_head
def test_truth_over_several_blocks(backend: Backend, graph, scaled, dtype):
    check(make_head(type(graph)(2500), scaled, dtype, (2, 5), device=backend.device))


@pytest.mark.interpreted_head
@by_dtype
@by_head
def test_without_a_bias(backend: Backend, graph, scaled, dtype):
    check(make_head(graph, scaled, dtype, bias=False, device=backend.device))


@pytest.mark.interpreted_head(workspace=(1,))
@by_dtype
@by_head
@pytest.mark.parametrize("workspace", [1, 3000, 40_000])
def test_a_small_workspace_changes_nothing(backend: Backend, graph, scaled, dtype, workspace):
    """Rows come in several chunks; the gradient of a half-precision weight is rounded once."""
    head = make_head(
        type(graph)(300), scaled, dtype, (3, backend.some(12, 3)), device=backend.device
    )
    check(head, workspace=workspace)
    whole, parts = run(head, "sum"), run(head, "sum", workspace=workspace)
    little = 1e-12 if dtype == torch.float64 else 1e-5
    little = max(little, 2 * torch.finfo(dtype).eps)
    for name, value in parts.named().items():
        torch.testing.assert_close(
            value, getattr(whole, name), rtol=little, atol=little * float(value.abs().max())
        )


@by_head
def test_gradcheck(backend: Backend, graph, scaled):
    if backend.widest != torch.float64:
        pytest.skip(f"{backend} has no float64")
    head = make_head(graph, scaled, torch.float64, (2, 3), width=4, device=backend.device).leaves()
    for reduction in REDUCTIONS:

        def loss(*operands: Tensor, reduction: str = reduction) -> Tensor:
            hidden, weight, bias = operands
            given = replace(head, hidden=hidden, weight=weight, bias=bias)
            return given.entropy(reduction)

        assert torch.autograd.gradcheck(loss, head.operands)


@by_head
def test_equals_score_entropy_of_the_same_head(backend: Backend, graph, scaled):
    head = make_head(graph, scaled, backend.widest, device=backend.device)
    i = head.inputs
    expected = sf.score_entropy(head.log_score(), i.sigma, i.x_t, i.x_0, graph, i.row_weight)
    little = 1e-11 if backend.widest == torch.float64 else 1e-4
    torch.testing.assert_close(head.entropy(), expected, rtol=little, atol=little)


@pytest.mark.interpreted_float16
@by_head
@by_dtype
def test_dtypes_of_the_results(backend: Backend, graph, scaled, dtype):
    head = make_head(graph, scaled, dtype, device=backend.device)
    for reduction in REDUCTIONS:
        results = run(head, reduction)
        assert results.loss.dtype == loss_dtype(head)
        assert results.loss.shape == (head.inputs.x_t.shape if reduction == "none" else ())
        assert {results.hidden.dtype, results.weight.dtype, results.bias.dtype} == {dtype}
        with torch.no_grad():
            torch.testing.assert_close(head.entropy(reduction), results.loss)


@pytest.mark.interpreted_head(reduction=("none", "mean"), missing=(2, 5))
@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("missing", range(8))
def test_only_some_operands_require_gradients(backend: Backend, graph, scaled, reduction, missing):
    """``missing`` has one bit for each of hidden, weight, bias."""
    head = make_head(graph, scaled, device=backend.device)
    whole = run(head, reduction)
    operands = [x.detach().clone() for x in head.operands]
    for number, x in enumerate(operands):
        x.requires_grad_(not missing >> number & 1)
    given = replace(head, hidden=operands[0], weight=operands[1], bias=operands[2])
    loss = given.entropy(reduction)
    torch.testing.assert_close(loss.detach(), whole.loss)
    assert loss.requires_grad == (missing != 7)
    if missing != 7:
        loss.sum().backward()
    for x, expected in zip(operands, (whole.hidden, whole.weight, whole.bias), strict=True):
        assert (x.grad is None) == (not x.requires_grad)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, expected)


@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_tied_to_the_embedding(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    i, table = head.inputs, head.weight.clone().requires_grad_()
    tied = replace(head, hidden=torch.tanh(table[i.x_t]), weight=table)
    tied.entropy(reduction).sum().backward()
    ours, table.grad = table.grad, None
    tied = replace(head, hidden=torch.tanh(table[i.x_t]), weight=table)
    log_score = tied.log_score()
    sf.score_entropy(log_score, *i.entropy()[1:], i.row_weight, reduction).sum().backward()
    torch.testing.assert_close(ours, table.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.interpreted_head
@by_dtype
@by_head
def test_layouts(backend: Backend, graph, scaled, dtype):
    head = make_head(graph, scaled, dtype, device=backend.device)
    hidden, weight, bias = head.operands
    i = head.inputs
    spaced = torch.stack([bias, torch.full_like(bias, torch.nan)], -1)[:, 0]
    others = [
        replace(head, hidden=hidden.transpose(0, 1).contiguous().transpose(0, 1)),
        replace(head, hidden=hidden.transpose(1, 2).contiguous().transpose(1, 2)),
        replace(head, weight=weight.t().contiguous().t()),
        replace(head, weight=torch.nn.functional.pad(weight, (2, 3), value=torch.nan)[:, 2:-3]),
        replace(head, bias=spaced),
        replace(head, inputs=replace(
            i,
            x_t=i.x_t.t().contiguous().t(),
            x_0=torch.stack([i.x_0, i.x_0], -1)[..., 1],
            row_weight=i.row_weight.t().contiguous().t(),
            sigma=torch.stack([i.sigma, i.sigma], -1)[:, 0],
        )),
    ]  # fmt: skip
    for other in others:
        check(other)


@by_head
def test_a_hidden_state_shared_by_the_batch(backend: Backend, graph, scaled):
    head = make_head(graph, scaled, backend.widest, device=backend.device)
    one = head.hidden[:1].clone()
    shared = run(replace(head, hidden=one.expand(3, -1, -1)), "sum")
    dense = run(replace(head, hidden=one.expand(3, -1, -1).contiguous()), "sum")
    for name, value in shared.named().items():
        torch.testing.assert_close(value, getattr(dense, name))


@pytest.mark.interpreted_head(reduction=("none", "mean"), shape=((0, 4),))
@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_an_empty_batch(backend: Backend, graph, scaled, reduction, shape):
    head = make_head(graph, scaled, device=backend.device)
    i, (b, n) = head.inputs, shape
    cut = {name: getattr(i, name)[:b, :n] for name in ("x_t", "x_0", "row_weight")}
    empty = replace(head, hidden=head.hidden[:b, :n], inputs=replace(i, sigma=i.sigma[:b], **cut))
    results = run(empty, reduction)
    assert results.loss.shape == (shape if reduction == "none" else ())
    assert float(results.loss.nansum()) == 0
    assert results.hidden.shape == (*shape, 16)
    for value in (results.weight, results.bias):
        assert torch.equal(value, torch.zeros_like(value))


@by_dtype
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("masked", [False, True], ids=["none masked", "all masked"])
def test_rows_all_of_one_kind(backend: Backend, scaled, masked, dtype):
    graph = sf.Absorbing(11)
    head = make_head(graph, scaled, dtype, device=backend.device)
    x_t = torch.full_like(head.inputs.x_0, graph.mask_index) if masked else head.inputs.x_0
    head = replace(head, inputs=replace(head.inputs, x_t=x_t))
    check(head)
    for reduction in REDUCTIONS:
        for value in run(head, reduction).named().values():
            assert bool(value.any()) == masked


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_dtype
@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_without_loss_are_never_read(backend: Backend, graph, scaled, reduction, dtype):
    head = make_head(graph, scaled, dtype, device=backend.device)
    i = head.inputs
    unread = i.row_weight == 0
    if graph.kind == "absorbing":
        unread = unread | (i.x_t != graph.mask_index)
    assert bool(unread.any())
    spoilt = replace(head, hidden=head.hidden.masked_fill(unread[..., None], torch.nan))
    got, expected = run(spoilt, reduction), run(head, reduction)
    for name, value in got.named().items():
        assert torch.equal(value, getattr(expected, name)), name
    assert not got.hidden[unread].any()


@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_mask_has_no_score(backend: Backend, graph, scaled, reduction):
    if graph.mask_index is None:
        pytest.skip("no mask")
    results = run(make_head(graph, scaled, device=backend.device), reduction)
    assert not results.weight[graph.mask_index].any()
    assert not results.bias[graph.mask_index].any()


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_head
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_in_a_hidden_state(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    i = replace(head.inputs, row_weight=torch.ones_like(head.inputs.row_weight))
    head.hidden[0, 0] = torch.nan  # make_inputs noises the first position
    loss = run(replace(head, inputs=i), reduction).loss
    assert bool(loss.flatten()[0].isnan())
    if reduction == "none":
        assert not loss.flatten()[1:].isnan().any()
