"""linear_cross_entropy under autograd and autocast: operands, accumulation, derivatives, dtypes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.head_cases import on_heads
from helpers.op_cases import Backend
from helpers.softmax_cases import SoftmaxHead, head_on, naive, run

REDUCTIONS = ("none", "sum", "mean")
pytestmark = [*on_heads, pytest.mark.operation("linear_cross_entropy")]
by_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def of(backend: Backend, dtype: torch.dtype = torch.float32, **rest: Any) -> SoftmaxHead:
    rest = {"excluded": (4,), "softcap": 6.0, "z_loss": 0.01, **rest}
    return head_on(backend, 11, dtype, **rest)


def gradients(head: SoftmaxHead) -> dict[str, Tensor]:
    return {
        name: x.grad
        for name, x in zip(("hidden", "weight", "bias"), head.operands, strict=True)
        if x is not None and x.grad is not None
    }


def assert_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance) -> None:
    assert set(got) == set(expected)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], **tolerance)


@by_reduction
@pytest.mark.parametrize("term", [{}, {"softcap": None}, {"bias": False}], ids=str)
def test_gradcheck(backend: Backend, reduction, term):
    if backend.widest != torch.float64:
        pytest.skip(f"{backend} has no float64")
    head = of(backend, torch.float64, width=4, **term)
    head = replace(head, target=head.target[:2, :3], row_weight=head.row_weight[:2, :3])
    head = replace(head, hidden=head.hidden[:2, :3]).leaves()
    given = [x for x in head.operands if x is not None]

    def loss(*operands: Tensor) -> Tensor:
        every = (*operands, *[None] * (3 - len(operands)))
        return head.with_operands(every).entropy(reduction)

    assert torch.autograd.gradcheck(loss, given)


@pytest.mark.interpreted_head(reduction=("none", "mean"), missing=(1, 2, 6))
@by_reduction
@pytest.mark.parametrize("missing", range(8))
def test_only_some_operands_require_gradients(backend: Backend, reduction, missing):
    """``missing`` has one bit for each of hidden, weight, bias."""
    head = of(backend)
    whole = run(head, reduction)
    operands = [x.detach().clone() for x in head.operands]
    for number, x in enumerate(operands):
        x.requires_grad_(not missing >> number & 1)
    for workspace in (None, 700):
        given = head.with_operands(operands)
        loss = given.entropy(reduction, workspace=workspace)
        torch.testing.assert_close(loss.detach(), whole.loss)
        assert loss.requires_grad == (missing != 7)
        if missing != 7:
            loss.sum().backward()
        for x, expected in zip(operands, (whole.hidden, whole.weight, whole.bias), strict=True):
            assert (x.grad is None) == (not x.requires_grad)
            if x.grad is not None:
                torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-6)
                x.grad = None


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_reduction
def test_gradients_of_two_backward_calls_add_up(backend: Backend, reduction):
    """The gradient returned must not be the stored one, because .grad is changed in place."""
    head = of(backend).leaves()
    expected = run(head, reduction).named()
    del expected["loss"]
    loss = head.entropy(reduction).sum()
    for times in (1, 2):
        loss.backward(retain_graph=True)
        assert_gradients(gradients(head), {k: times * v for k, v in expected.items()})
    for x in head.operands:
        x.grad.zero_()
    loss.backward()
    assert_gradients(gradients(head), expected)


@by_reduction
def test_a_weight_tied_to_the_embedding(backend: Backend, reduction):
    """Also used before the head, and by a second loss: its gradients add up."""
    head = of(backend)
    tokens = head.target.clamp(min=0)

    def total(fused: bool) -> Tensor:
        table = head.weight.clone().requires_grad_()
        tied = replace(head, hidden=torch.tanh(table[tokens]), weight=table)
        second = replace(tied, hidden=tied.hidden * 0.5)
        if fused:
            loss = tied.entropy(reduction).sum() + second.entropy("sum")
        else:
            loss = eager(tied, reduction).sum() + eager(second, "sum")
        (loss + table.square().sum()).backward()
        return table.grad

    torch.testing.assert_close(total(True), total(False), rtol=1e-4, atol=1e-5)


def eager(head: SoftmaxHead, reduction: str) -> Tensor:
    """The loss of torch's own operations on the logits."""
    f = head.logits()
    log_sum = f.logsumexp(-1)
    ignored = head.target == head.ignore_index
    at = f.gather(-1, head.target.clamp(min=0)[..., None]).squeeze(-1)
    loss = (log_sum - at + head.z_loss * log_sum**2).where(~ignored & (head.row_weight != 0), 0)
    loss = loss * head.row_weight.to(loss.dtype)
    return (
        loss if reduction == "none" else loss.sum() / (head.count() if reduction == "mean" else 1)
    )


@by_reduction
def test_a_first_layer_below_the_head(backend: Backend, reduction):
    """The gradient reaches what makes the hidden states."""
    head = of(backend)
    layer = torch.eye(16, device=backend.device).requires_grad_()
    other = layer.detach().clone().requires_grad_()
    replace(head, hidden=F.linear(head.hidden, layer)).entropy(reduction).sum().backward()
    eager(replace(head, hidden=F.linear(head.hidden, other)), reduction).sum().backward()
    torch.testing.assert_close(layer.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.interpreted_head
def test_upstream_gradients_of_every_form(backend: Backend):
    head = of(backend, backend.widest)
    ones, rest = run(head), {"dtype": backend.widest, "device": backend.device}
    twice = run(head, upstream=torch.tensor(2.0, **rest).expand(head.target.shape))  # stride 0
    nothing = run(head, upstream=torch.zeros_like(ones.loss))
    size = head.target.numel()
    slanted = torch.linspace(-1, 1, size, **rest).view(-1, 3).t()
    each = run(head, upstream=slanted)
    for name in ("hidden", "weight", "bias"):
        torch.testing.assert_close(getattr(twice, name), 2 * getattr(ones, name))
        assert not getattr(nothing, name).any()
    torch.testing.assert_close(each.hidden, slanted[..., None] * ones.hidden)
    part = torch.zeros_like(ones.loss)
    part[0] = 1
    first = replace(head, row_weight=head.row_weight * part)
    torch.testing.assert_close(run(head, upstream=part).weight, run(first).weight)


@by_reduction
def test_a_second_derivative_is_refused(backend: Backend, reduction):
    head = of(backend, backend.widest).leaves()
    loss = head.entropy(reduction).sum()

    def penalty() -> None:
        made = torch.autograd.grad(loss, head.operands, create_graph=True)
        sum(x.square().sum() for x in made).backward()

    with pytest.raises(RuntimeError, match=r"linear_cross_entropy has no second derivative.*form"):
        penalty()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_loss_scaler_brings_float16_gradients_into_range(backend: Backend, reduction):
    head = of(backend, torch.float16)
    tiny = replace(head, row_weight=head.row_weight * 1e-7)
    got = run(tiny, reduction, torch.tensor(2.0**16, device=backend.device))
    count = head.count() if reduction == "mean" else 1
    upstream = torch.full_like(head.row_weight, 2.0**16 / count)
    truth, size = naive(tiny.to(torch.float64), upstream)
    for name in ("hidden", "weight", "bias"):
        value = getattr(got, name)
        assert value.dtype == torch.float16
        error = (value.double() - getattr(truth, name)).abs()
        assert bool((error <= 5e-3 * getattr(size, name) + 2**-24).all())
        assert bool(value.any())


# Autocast


@pytest.mark.interpreted_head(reduction=("none", "mean"))
@by_reduction
@pytest.mark.usefixtures("products_in_half")
def test_autocast(backend: Backend, reduction):
    head = of(backend)
    half = head.to(torch.bfloat16)
    with torch.autocast(backend.device, torch.bfloat16):
        got = run(head, reduction)
        mixed = run(replace(head, hidden=half.hidden), reduction)
        fp32 = run(replace(head, hidden=half.hidden.float()), reduction)
    expected, size = run(half, reduction), naive(head.to(torch.float64))[1]
    scale = 1 / head.count() if reduction == "mean" else 1
    little = scale * (0.04 if backend.interpreted else 0.02)  # the interpreter truncates to bf16
    assert got.loss.dtype == mixed.loss.dtype == torch.float32
    total = size.loss if reduction == "none" else size.loss.sum()
    assert bool(((got.loss - expected.loss).abs() <= little * total).all())
    for name in ("hidden", "weight", "bias"):
        value = getattr(got, name)
        assert value.dtype == torch.float32
        off = (value.double() - getattr(expected, name).double()).abs()
        assert bool((off <= little * getattr(size, name)).all()), name
    assert not torch.equal(got.weight, run(head, reduction).weight)  # autocast did something
    assert (mixed.hidden.dtype, mixed.weight.dtype) == (torch.bfloat16, torch.float32)
    if not backend.interpreted:  # where bf16 of the kernel's and of torch's are not the same
        torch.testing.assert_close(mixed.weight, fp32.weight)


def test_autocast_does_not_change_float64(backend: Backend):
    if backend.widest != torch.float64:
        pytest.skip(f"{backend} has no float64")
    head = of(backend, torch.float64)
    with torch.autocast(backend.device, torch.bfloat16):
        got = run(head)
    for name, value in run(head).named().items():
        assert torch.equal(getattr(got, name), value)


def test_the_gradient_of_a_half_weight_is_added_up_in_float32(backend: Backend):
    """Many rows of which each adds little: in bfloat16 the sum would stop growing."""
    rows, states = backend.some(4000, 600), 3
    head = of(backend, torch.bfloat16, excluded=(), softcap=None, z_loss=0.0, width=2)
    ones = torch.ones(rows, 2, dtype=torch.bfloat16, device=backend.device)
    head = replace(
        head,
        hidden=ones,
        weight=head.weight[:states] * 0,
        bias=None,
        target=torch.zeros(rows, dtype=torch.int64, device=backend.device),
        row_weight=None,
    )
    for reduction in ("none", "sum"):
        for workspace in (None, 2000):
            made = run(head, reduction, workspace=workspace).weight.double()
            expected = rows * torch.tensor([-2 / 3, 1 / 3, 1 / 3], dtype=torch.float64)
            torch.testing.assert_close(made[:, 0].cpu(), expected, rtol=2**-7, atol=0)
