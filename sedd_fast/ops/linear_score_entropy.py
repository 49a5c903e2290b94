"""linear_score_entropy: the training loss from hidden states; the head's output never exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.backends.head import Linear, NeedsGrad
from sedd_fast.backends.inputs import Entropy
from sedd_fast.backends.values import gradient_dtype
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import _linear
from sedd_fast.ops._operator import operator
from sedd_fast.ops.touched_rows import TouchedRows


@operator("linear_score_entropy")
def linear_score_entropy_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    graph: str,
    vocab_size: int,
    scale_by_sigma: bool,
    dtype: torch.dtype,
    workspace: int,
) -> tuple[Tensor, Tensor]:
    run, code = registry.implementation("linear_score_entropy", hidden, graph)
    linear = Linear(hidden, weight, bias, rows, dtype, workspace)
    entropy = Entropy(sigma, x_t, x_0, row_weight, graph, vocab_size, scale_by_sigma)
    with _linear.no_autocast(hidden.device):
        return run(linear, entropy), code


@linear_score_entropy_op.register_fake
def _(hidden, weight, bias, sigma, x_t, x_0, row_weight, rows, g, v, s, dtype, w):  # type: ignore[no-untyped-def]
    return _empty_loss(hidden, dtype, tuple(x_t.shape)), registry.fake_code()


@operator("linear_score_entropy_backward")
def linear_score_entropy_backward_op(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    code: Tensor,
    graph: str,
    vocab_size: int,
    scale_by_sigma: bool,
    dtype: torch.dtype,
    workspace: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    run = registry.by_code("linear_score_entropy_with_grad", code)
    linear = Linear(hidden, weight, bias, rows, dtype, workspace)
    entropy = Entropy(sigma, x_t, x_0, row_weight, graph, vocab_size, scale_by_sigma)
    with _linear.no_autocast(hidden.device):
        _, made = run(linear, entropy, grad_loss.double(), NeedsGrad(*needs))
    operands = (hidden, weight, hidden if bias is None else bias)
    gradients = (made.hidden, made.weight, made.bias)
    hidden_, weight_, bias_ = (g.to(x.dtype) for g, x in zip(gradients, operands, strict=True))
    return hidden_, weight_, bias_


@linear_score_entropy_backward_op.register_fake
def _(grad_loss, hidden, weight, bias, *rest):  # type: ignore[no-untyped-def]
    return _empty_gradients(hidden, weight, bias, rest[-1], lambda dtype: dtype)


@operator("linear_score_entropy_with_grad")
def linear_score_entropy_with_grad_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    rows: Tensor | None,
    scale: float,
    graph: str,
    vocab_size: int,
    scale_by_sigma: bool,
    dtype: torch.dtype,
    workspace: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = registry.function("linear_score_entropy_with_grad", hidden, graph)
    linear = Linear(hidden, weight, bias, rows, dtype, workspace)
    entropy = Entropy(sigma, x_t, x_0, row_weight, graph, vocab_size, scale_by_sigma)
    with _linear.no_autocast(hidden.device):
        loss, made = run(linear, entropy, scale, NeedsGrad(*needs))
    total = torch.mul(loss.sum(dtype=torch.float64), scale, out=loss.new_empty(()))
    return total, made.hidden, made.weight, made.bias


@linear_score_entropy_with_grad_op.register_fake
def _(hidden, weight, bias, sigma, x_t, x_0, row_weight, rows, c, g, v, s, dtype, w, needs):  # type: ignore[no-untyped-def]
    total = _empty_loss(hidden, dtype, ())
    return total, *_empty_gradients(hidden, weight, bias, needs, gradient_dtype)


def _empty_loss(hidden: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.empty(shape, dtype=wide, device=hidden.device)


def _empty_gradients(hidden, weight, bias, needs, dtype_of):  # type: ignore[no-untyped-def]
    operands = (hidden, weight, hidden if bias is None else bias)
    return tuple(
        torch.empty(x.shape if need else 0, dtype=dtype_of(x.dtype), device=hidden.device)
        for x, need in zip(operands, needs, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.graph, ctx.vocab_size, ctx.scaled, ctx.dtype, ctx.workspace = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    made = linear_score_entropy_backward_op(
        grad_loss,
        *ctx.saved_tensors,
        ctx.graph,
        ctx.vocab_size,
        ctx.scaled,
        ctx.dtype,
        ctx.workspace,
        needs,
    )
    return *(g if need else None for g, need in zip(made, needs, strict=True)), *(None,) * 10


def _no_double_backward(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "linear_score_entropy has no second derivative: its gradient is a fused kernel. For "
        "gradient penalties form the scores with torch.nn.functional.linear and write the loss in "
        "plain torch"
    )


def _setup_with_grad(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # zeros for outputs that have no gradient, one as the weight
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]


def _backward_with_grad(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * 15
    if torch.is_grad_enabled():  # create_graph=True: the gradients would pass for constants
        _no_double_backward(ctx)
    scaled = [
        _linear.scale_gradient(made, upstream, dtype) if need else None
        for made, dtype, need in zip(
            ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True
        )
    ]
    return *scaled, *(None,) * 12


linear_score_entropy_op.register_autograd(_backward, setup_context=_setup)
linear_score_entropy_backward_op.register_autograd(_no_double_backward)
linear_score_entropy_with_grad_op.register_autograd(
    _backward_with_grad, setup_context=_setup_with_grad
)


def linear_score_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sigma: Tensor | float,
    x_t: Tensor,
    x_0: Tensor,
    graph: arguments.GraphLike,
    scale_by_sigma: bool = True,
    row_weight: Tensor | None = None,
    reduction: str = "none",
    rows: TouchedRows | None = None,
    workspace: int | None = None,
) -> Tensor:
    """Score entropy of the head f = hidden @ weight.T + bias; no tensor of B * L * dim is made.

    The same loss as ``score_entropy(l, ...)`` with l = f, or l = f - ln(expm1(sigma)) - ln(V)
    (``scale_by_sigma``, in which form E cancels:

        loss = (1/E) * [sum over real tokens of exp(f_y) / V - 1 + ln V - f_{x_0}]  at a mask),

    formed block by block over the vocabulary, for the touched rows alone (masked positions of an
    absorbing graph), and differentiable in hidden, weight and bias. "sum" and "mean" form the
    gradients in the forward pass: three matrix products in all. "none" must learn the weight of
    every position first, so its backward forms the scores again: four.

    Args:
        hidden: (B, L, H), what the head is applied to.
        weight: (graph.dim, H); its row of an absorbing graph's mask gets no gradient.
        bias: (graph.dim,) or None.
        sigma: total noise, a number, (B,) or (B, 1); positive.
        x_t: (B, L) int64, noised tokens.
        x_0: (B, L) int64, clean tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        scale_by_sigma: the head's output is scaled, as published absorbing checkpoints have it;
            False for a uniform graph.
        row_weight: (B, L) factor of every position's loss.
        reduction: "none" (B, L), "sum", or "mean" over B * L.
        rows: from :func:`touched_rows`, so that a GPU is not waited for.
        workspace: bytes of memory to work in besides the gradients; 32 MiB on a CPU, 64 on a GPU.

    Returns:
        nats: (B, L), or () for "sum" and "mean"; float32, float64 for float64 operands. NaN where
        ``rows`` has overflowed.

    Under torch.autocast the products run in its dtype, blocks of the weight are converted on the
    way, and gradients come back in the dtypes of the operands.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> hidden = model.features(x_t, sigma)
        >>> head = model.output_layer.linear
        >>> loss = sf.linear_score_entropy(
        ...     hidden, head.weight, head.bias, sigma, x_t, x_0, graph, reduction="mean"
        ... )

    Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equation 5 and appendix C.2.
    """
    arguments.check_choice("reduction", reduction, arguments.REDUCTIONS)
    dtype = _linear.check_operands(hidden, weight, bias, graph)
    _linear.check_scaling(scale_by_sigma, graph)
    arguments.check_tokens("x_t", x_t, tuple(hidden.shape[:2]))
    arguments.check_tokens("x_0", x_0, tuple(hidden.shape[:2]))
    arguments.check_device("x_t", x_t, hidden, "hidden")
    arguments.check_device("x_0", x_0, hidden, "hidden")
    tensors = (
        hidden,
        weight,
        bias,
        arguments.per_sequence("sigma", sigma, x_t),
        x_t,
        x_0,
        arguments.per_position("row_weight", row_weight, x_t),
        None if rows is None else rows.index,
    )
    room = _linear.check_workspace(workspace, hidden.device)
    settings = (graph.kind, graph.vocab_size, scale_by_sigma, dtype, room)
    needs = [x is not None and x.requires_grad for x in (hidden, weight, bias)]
    if reduction != "none" and any(needs) and torch.is_grad_enabled():
        scale = 1.0 / max(x_t.numel(), 1) if reduction == "mean" else 1.0
        loss = linear_score_entropy_with_grad_op(*tensors, scale, *settings, needs)[0]
    else:
        loss, _ = linear_score_entropy_op(*tensors, *settings)
        loss = arguments.reduce(loss, reduction)
    if rows is not None and rows.overflow is not None:
        loss = torch.where(rows.overflow, torch.nan, loss)
    return loss
