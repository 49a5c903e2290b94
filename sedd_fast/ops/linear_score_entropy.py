"""linear_score_entropy: the training loss from hidden states; the head's output never exists."""

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.names import REDUCTIONS, Reduction
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import _linear
from sedd_fast.ops._operator import operator
from sedd_fast.ops.touched_rows import TouchedRows

NO_SECOND_DERIVATIVE = (
    "linear_score_entropy has no second derivative: its gradient is a fused kernel. For "
    "gradient penalties form the scores with torch.nn.functional.linear and write the loss in "
    "plain torch"
)


@operator("linear_score_entropy")
def linear_score_entropy_op(
    linear: Linear, entropy: EntropyInputs
) -> tuple[Tensor, registry.BackendCode]:
    run, code = registry.implementation("linear_score_entropy", linear.hidden, entropy.graph)
    values.check_for(run, entropy)
    with _linear.no_autocast(linear.hidden.device):
        return run(linear, entropy), code


@linear_score_entropy_op.register_fake
def _(linear: Linear, entropy: EntropyInputs) -> tuple[Tensor, Tensor]:
    return _empty_loss(linear, entropy.x_t.shape), registry.fake_code()


@operator("linear_score_entropy_backward")
def linear_score_entropy_backward_op(
    grad_loss: Tensor, linear: Linear, entropy: EntropyInputs, code: Tensor, needs: NeedsGrad
) -> tuple[Tensor, Tensor, Tensor]:
    run = registry.by_code("linear_score_entropy_with_grad", code)
    with _linear.no_autocast(linear.hidden.device):
        _, made = run(linear, entropy, grad_loss.double(), needs)
    hidden, weight, bias = (g.to(x.dtype) for g, x in zip(made, linear.operands, strict=True))
    return hidden, weight, bias


@linear_score_entropy_backward_op.register_fake
def _(
    grad_loss: Tensor, linear: Linear, entropy: EntropyInputs, code: Tensor, needs: NeedsGrad
) -> tuple[Tensor, ...]:
    return _linear.empty_gradients(linear, needs, lambda dtype: dtype)


@operator("linear_score_entropy_with_grad")
def linear_score_entropy_with_grad_op(
    linear: Linear, entropy: EntropyInputs, scale: float, needs: NeedsGrad
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = registry.function("linear_score_entropy_with_grad", linear.hidden, entropy.graph)
    values.check_for(run, entropy)
    with _linear.no_autocast(linear.hidden.device):
        loss, made = run(linear, entropy, scale, needs)
    total = torch.mul(loss.sum(dtype=torch.float64), scale, out=loss.new_empty(()))
    return total, *made


@linear_score_entropy_with_grad_op.register_fake
def _(linear: Linear, entropy: EntropyInputs, scale: float, needs: NeedsGrad) -> tuple[Tensor, ...]:
    return _empty_loss(linear, ()), *_linear.empty_gradients(linear, needs, gradient_dtype)


def _empty_loss(linear: Linear, shape: tuple[int, ...]) -> Tensor:
    return linear.hidden.new_empty(shape, dtype=fp32_or_fp64(linear.dtype))


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = NeedsGrad(*ctx.needs_input_grad[:3])
    saved = linear_score_entropy_op.saved_arguments(ctx)
    made = linear_score_entropy_backward_op(grad_loss, *saved, needs)
    return tuple(g if need else None for g, need in zip(made, needs, strict=True))


linear_score_entropy_op.register_autograd(_backward)
linear_score_entropy_backward_op.refuse_gradient(NO_SECOND_DERIVATIVE)
linear_score_entropy_with_grad_op.register_autograd(
    _linear.scaled_gradients(NO_SECOND_DERIVATIVE), setup_context=_linear.keep_gradients
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
    reduction: Reduction = "none",
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
        rows: from :func:`touched_rows`, so that the call does not synchronise a GPU.
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
    arguments.check_choice("reduction", reduction, REDUCTIONS)
    linear = _linear.checked_linear(hidden, weight, bias, graph, rows, workspace)
    _linear.check_inputs(hidden, graph, scale_by_sigma, x_t=x_t, x_0=x_0)
    # In float64 from here on: forward and backward would both convert them, by launches on a GPU.
    sigma = arguments.per_sequence("sigma", sigma, x_t).double()
    row_weight = arguments.per_position("row_weight", row_weight, x_t)
    row_weight = None if row_weight is None else row_weight.double()
    process = *arguments.process(graph), scale_by_sigma
    entropy = EntropyInputs(sigma, x_t, x_0, row_weight, *process)
    needs = NeedsGrad(*(x is not None and x.requires_grad for x in (hidden, weight, bias)))
    if reduction != "none" and any(needs) and _linear.gradients_ahead():
        scale = arguments.factor_of_each(x_t, reduction)
        loss = linear_score_entropy_with_grad_op(linear, entropy, scale, needs)[0]
    else:
        loss, _ = linear_score_entropy_op(linear, entropy)
        loss = arguments.reduce(loss, reduction)
    if rows is not None and rows.overflow is not None:
        loss = torch.where(rows.overflow, torch.nan, loss)
    return loss
