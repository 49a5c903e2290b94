"""linear_score_entropy under autograd, autocast and loss scaling; large outputs; given rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sedd_fast as sf
from helpers.head_cases import HEADS, Results, make_head, naive, on_heads, run
from helpers.op_cases import Backend, graph_id
from sedd_fast.backends import registry

REDUCTIONS = ("none", "sum", "mean")
pytestmark = [*on_heads, pytest.mark.operation("linear_score_entropy")]
by_head = pytest.mark.parametrize(("graph", "scaled"), HEADS, ids=lambda v: graph_id(v) or str(v))
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def assert_same(got: Results, expected: Results, **tolerance: float) -> None:
    for name, value in got.named().items():
        torch.testing.assert_close(value, getattr(expected, name), **tolerance)


@by_head
@by_reduction
def test_gradients_of_two_backward_calls_add_up(backend: Backend, graph, scaled, reduction):
    """The gradient returned must not be the stored one, because .grad is changed in place."""
    head = make_head(graph, scaled, device=backend.device).leaves()
    once = run(head, reduction)
    loss = head.entropy(reduction).sum()
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        for got, name in zip(head.gradients(), ("hidden", "weight", "bias"), strict=True):
            torch.testing.assert_close(got, times * getattr(once, name))
    for x in head.operands:
        x.grad.zero_()
    loss.backward()
    for got, name in zip(head.gradients(), ("hidden", "weight", "bias"), strict=True):
        torch.testing.assert_close(got, getattr(once, name))


@by_head
@by_reduction
def test_two_backward_calls_return_different_tensors(backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device).leaves()
    loss = head.entropy(reduction).sum()
    first = torch.autograd.grad(loss, head.operands, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.zero_()
    for got, expected in zip(torch.autograd.grad(loss, head.operands), kept, strict=True):
        assert torch.equal(got, expected)


@by_head
@by_reduction
def test_gradients_accumulate_over_batches(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    parts = [run(replace(head, hidden=head.hidden * s), reduction) for s in (1.0, 0.5)]
    both = head.leaves()
    for s in (1.0, 0.5):
        replace(both, hidden=both.hidden * s).entropy(reduction).sum().backward()
    torch.testing.assert_close(both.weight.grad, parts[0].weight + parts[1].weight)
    torch.testing.assert_close(both.bias.grad, parts[0].bias + parts[1].bias)
    torch.testing.assert_close(both.hidden.grad, parts[0].hidden + 0.5 * parts[1].hidden)


@by_head
def test_upstream_gradients_of_every_form(backend: Backend, graph, scaled):
    head = make_head(graph, scaled, backend.widest, device=backend.device)
    ones = run(head)
    two = torch.tensor(2.0, dtype=backend.widest, device=backend.device)
    twice = run(head, upstream=two.expand(head.inputs.x_t.shape))  # stride 0
    doubled = (2 * getattr(ones, name) for name in ("hidden", "weight", "bias"))
    assert_same(twice, Results(ones.loss, *doubled))
    nothing = run(head, upstream=torch.zeros_like(ones.loss))
    assert not any(getattr(nothing, name).any() for name in ("hidden", "weight", "bias"))
    slanted = torch.linspace(-1, 1, 24, dtype=backend.widest, device=backend.device).view(8, 3).t()
    each = run(head, upstream=slanted)
    torch.testing.assert_close(each.hidden, slanted[..., None] * ones.hidden)
    for reduction in ("sum", "mean"):
        factor = run(head, reduction, -3.5 * torch.ones_like(two))
        base = run(head, reduction)
        for name in ("hidden", "weight", "bias"):
            torch.testing.assert_close(getattr(factor, name), -3.5 * getattr(base, name))


@by_head
@by_reduction
def test_double_backward_is_refused(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, backend.widest, device=backend.device).leaves()
    loss = head.entropy(reduction).sum()

    def penalty() -> None:
        gradients = torch.autograd.grad(loss, head.operands, create_graph=True)
        sum(x.square().sum() for x in gradients).backward()

    with pytest.raises(RuntimeError, match=r"linear_score_entropy has no second.*plain torch"):
        penalty()


@by_head
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_scaler_brings_float16_gradients_into_range(backend, graph, scaled, reduction):
    head = make_head(graph, scaled, torch.float16, device=backend.device)
    tiny = replace(head, inputs=replace(head.inputs, row_weight=head.inputs.row_weight * 1e-7))
    scale = torch.tensor(2.0**16, device=backend.device)
    got = run(tiny, reduction, scale)
    count = head.inputs.x_t.numel() if reduction == "mean" else 1
    truth, size = naive(tiny.double(), torch.full_like(head.inputs.row_weight, 2.0**16 / count))
    for name in ("hidden", "weight", "bias"):
        value = getattr(got, name)
        assert value.dtype == torch.float16
        error = (value.double() - getattr(truth, name)).abs()
        assert bool((error <= 5e-3 * getattr(size, name) + 2**-24).all())
        assert bool(value.any())


@pytest.mark.interpreted_head(reduction=("none",))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
@by_head
def test_exp_overflows_only_where_the_value_does(backend, graph, scaled, reduction, dtype):
    if backend.name == "reference" and dtype != torch.float64:
        pytest.skip("the reference exponentiates in float32 without rescaling")
    head = make_head(graph, scaled, dtype, sigma=1.0, device=backend.device)
    bias = head.bias.clone()
    bias[3] = 95.0  # exp(95) = 1.8e41
    i = replace(head.inputs, row_weight=torch.full_like(head.inputs.row_weight, 1e-6))
    head = replace(head, inputs=i, bias=bias, hidden=head.hidden / 8)
    got = run(head, reduction)
    truth, size = naive(head.double())
    loss = truth.loss if reduction == "none" else truth.loss.sum()
    big = {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float64: 1e-11}[dtype]  # of f near 95
    torch.testing.assert_close(got.loss.double(), loss, rtol=big, atol=0)
    for name in ("hidden", "weight", "bias"):
        value, true = getattr(got, name), getattr(truth, name)
        assert torch.isfinite(value).all(), name
        assert bool(((value.double() - true).abs() <= 2 * big * getattr(size, name)).all()), name


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_head
@by_reduction
def test_a_true_overflow_is_infinite_and_not_nan(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    i = replace(head.inputs, row_weight=torch.ones_like(head.inputs.row_weight))
    head = replace(head, inputs=i, bias=head.bias + 300)
    loss = run(head, reduction).loss
    counted = loss != 0
    assert bool(counted.any())
    assert torch.equal(loss[counted], torch.full_like(loss[counted], torch.inf))


# Rows


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_head
@by_reduction
def test_given_rows_change_nothing(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    i, expected = head.inputs, run(head, reduction)
    touched = sf.touched_rows(i.x_t, graph, i.row_weight)
    assert touched.overflow is None
    count = len(touched.index)
    assert_same(run(head, reduction, rows=touched), expected, rtol=1e-5, atol=1e-5)
    for max_rows in (1000,) if backend.interpreted else (count, count + 1, 1000):
        rows = sf.touched_rows(i.x_t, graph, i.row_weight, max_rows=max_rows)
        assert rows.index.shape == (min(max_rows, i.x_t.numel()),)
        assert not rows.overflow
        assert_same(run(head, reduction, rows=rows), expected, rtol=1e-5, atol=1e-5)
    few = run(head, reduction, rows=rows, workspace=2000)  # products of other shapes
    assert_same(few, expected, rtol=5e-5, atol=5e-5)


@by_head
def test_which_rows_have_a_loss(backend: Backend, graph, scaled):
    i = make_head(graph, scaled, shape=(5, 40), device=backend.device).inputs
    read = i.row_weight != 0
    if graph.kind == "absorbing":
        read = read & (i.x_t == graph.mask_index)
    expected = read.flatten().nonzero().squeeze(-1)
    assert torch.equal(sf.touched_rows(i.x_t, graph, i.row_weight).index, expected)
    padded = sf.touched_rows(i.x_t, graph, i.row_weight, max_rows=len(expected) + 3).index
    assert torch.equal(padded[:-3], expected)
    assert padded[-3:].tolist() == [-1, -1, -1]


@by_head
@by_reduction
def test_too_many_rows_give_nan_and_no_gradient(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    rows = sf.touched_rows(head.inputs.x_t, graph, head.inputs.row_weight, max_rows=2)
    assert bool(rows.overflow)
    results = run(head, reduction, rows=rows)
    assert bool(results.loss.isnan().all())
    for name in ("hidden", "weight", "bias"):
        value = getattr(results, name)
        assert torch.equal(value, torch.zeros_like(value)), name


@by_reduction
@pytest.mark.parametrize("scaled", [True, False])
def test_a_row_index_of_minus_one_reads_no_row(backend: Backend, scaled, reduction):
    """Entries of -1 must not add a row that noise did not change."""
    graph = sf.Absorbing(11)
    head = make_head(graph, scaled, device=backend.device)
    x_t = head.inputs.x_t.clone()
    x_t[0, 0] = head.inputs.x_0[0, 0]
    head = replace(head, inputs=replace(head.inputs, x_t=x_t))
    expected = run(head, reduction)
    hidden = head.hidden.masked_fill((x_t != graph.mask_index)[..., None], torch.nan)
    rows = sf.touched_rows(x_t, graph, head.inputs.row_weight, max_rows=24)
    assert_same(run(replace(head, hidden=hidden), reduction, rows=rows), expected)


@by_head
def test_bad_rows(backend: Backend, graph, scaled):
    x_t = make_head(graph, scaled, device=backend.device).inputs.x_t
    with pytest.raises(ValueError, match=r"max_rows must be at least 1, got 0"):
        sf.touched_rows(x_t, graph, max_rows=0)
    with pytest.raises(TypeError, match=r"x_t must be int64"):
        sf.touched_rows(x_t.int(), graph)
    with pytest.raises(ValueError, match=r"row_weight must have shape \(3, 8\)"):
        sf.touched_rows(x_t, graph, torch.ones(3))


# Autocast


class Casts(TorchDispatchMode):
    """Counts the numbers that are converted from float32 to the dtype of autocast."""

    kinds = torch.float32, torch.bfloat16

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *made])
        cast = func in (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)
        if cast and (args[0].dtype, out.dtype) == self.kinds:
            self.count += out.numel()
        return out


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_head
@by_reduction
@pytest.mark.usefixtures("products_in_half")
def test_autocast(backend: Backend, graph, scaled, reduction):
    head = make_head(graph, scaled, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        got = run(head, reduction)
    rounded = [x.to(torch.bfloat16) for x in head.operands]
    half = replace(head, hidden=rounded[0], weight=rounded[1], bias=rounded[2])
    expected, size = run(half, reduction), naive(head.double())[1]
    little = 0.04 if backend.interpreted else 0.02  # the interpreter truncates to bf16
    assert got.loss.dtype == torch.float32
    loss_size = size.loss if reduction == "none" else size.loss.sum()
    scale = 1 / 24 if reduction == "mean" else 1
    assert bool(((got.loss - expected.loss).abs() <= little * scale * loss_size).all())
    for name in ("hidden", "weight", "bias"):
        value = getattr(got, name)
        assert value.dtype == torch.float32
        off = (value.double() - getattr(expected, name).double()).abs()
        assert bool((off <= little * scale * getattr(size, name)).all()), name
    exact = run(head, reduction)
    assert not torch.equal(got.weight, exact.weight)  # equal would mean that autocast did nothing


@by_reduction
def test_autocast_of_half_hidden_states_on_a_float32_weight(backend: Backend, reduction):
    head = make_head(sf.Absorbing(11), True, device=backend.device)
    half = replace(head, hidden=head.hidden.to(torch.bfloat16))
    with torch.autocast(backend.device, torch.bfloat16):
        got = run(half, reduction)
        fp32 = run(replace(head, hidden=half.hidden.float()), reduction)
    assert got.hidden.dtype == torch.bfloat16
    assert got.weight.dtype == got.bias.dtype == torch.float32
    torch.testing.assert_close(got.weight, fp32.weight)
    torch.testing.assert_close(got.hidden, fp32.hidden.to(torch.bfloat16))


@by_head
def test_autocast_does_not_change_float64(backend: Backend, graph, scaled):
    if backend.widest != torch.float64:
        pytest.skip(f"{backend} has no float64")
    head = make_head(graph, scaled, torch.float64, device=backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        got = run(head)
    assert_same(got, run(head), rtol=0, atol=0)


@by_head
@by_reduction
@pytest.mark.usefixtures("products_in_half")
def test_nothing_is_cast_twice_nor_as_large_as_the_logits(
    backend: Backend, graph, scaled, reduction, monkeypatch
):
    """Autocast is off inside the operation, and every operand is converted once per product."""
    if backend.name == "reference":
        pytest.skip("the reference computes all logits at once")
    seen, module = Casts(), registry.module(backend.name)
    for name in ("linear_score_entropy", "linear_score_entropy_with_grad"):
        monkeypatch.setattr(module, name, watched(getattr(module, name), seen))
    graph = type(graph)(6000)
    head = make_head(graph, scaled, shape=(4, backend.some(50, 5)), width=4, device=backend.device)
    # On a GPU the workspace bounds the width of a block; here it is too small for all states.
    workspace = None if backend.device == "cpu" else 1 << 19
    with torch.autocast(backend.device, torch.bfloat16):
        run(head, reduction, workspace=workspace)
    passes = 2 if reduction == "none" else 1
    touched = len(sf.touched_rows(head.inputs.x_t, graph, head.inputs.row_weight).index)
    assert 0 < seen.count <= passes * (graph.vocab_size + touched) * 4
    assert seen.largest < touched * graph.vocab_size


def watched(function: Any, mode: TorchDispatchMode) -> Any:
    def inside(*args: Any) -> Any:
        assert not torch.is_autocast_enabled(args[0].hidden.device.type)
        with mode:
            return function(*args)

    return inside
