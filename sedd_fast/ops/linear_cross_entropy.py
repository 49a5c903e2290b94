"""linear_cross_entropy: weighted cross entropy from hidden states; the logits never exist."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Linear, NeedsGrad
from sedd_fast.backends.softmax import CrossEntropyInputs, check_target
from sedd_fast.names import REDUCTIONS, Reduction
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import _linear
from sedd_fast.ops._operator import operator
from sedd_fast.ops.touched_rows import TouchedRows

NO_SECOND_DERIVATIVE = (
    "linear_cross_entropy has no second derivative: its gradient is a fused kernel. For gradient "
    "penalties form the logits with torch.nn.functional.linear and take "
    "torch.nn.functional.cross_entropy of them"
)


@operator("linear_cross_entropy")
def linear_cross_entropy_op(
    linear: Linear, entropy: CrossEntropyInputs
) -> tuple[Tensor, Tensor, registry.BackendCode]:
    run, code = registry.implementation("linear_cross_entropy", linear.hidden, "")
    _check_values(linear, entropy)
    with _linear.no_autocast(linear.hidden.device):
        loss, log_sum = run(linear.with_workspace(), entropy)
    return loss, log_sum, code


@linear_cross_entropy_op.register_fake
def _(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor, Tensor]:
    log_sum = entropy.row_weight.new_empty(entropy.row_weight.shape)
    return _empty_loss(linear, entropy.target.shape), log_sum, registry.fake_code()


@operator("linear_cross_entropy_backward")
def linear_cross_entropy_backward_op(
    grad_loss: Tensor,
    linear: Linear,
    entropy: CrossEntropyInputs,
    log_sum: Tensor,
    code: Tensor,
    needs: NeedsGrad,
) -> tuple[Tensor, Tensor, Tensor]:
    run = registry.by_code("linear_cross_entropy_backward", code)
    with _linear.no_autocast(linear.hidden.device):
        made = run(linear.with_workspace(), entropy.scaled(grad_loss), log_sum, needs)
    hidden, weight, bias = (g.to(x.dtype) for g, x in zip(made, linear.operands, strict=True))
    return hidden, weight, bias


@linear_cross_entropy_backward_op.register_fake
def _(
    grad_loss: Tensor,
    linear: Linear,
    entropy: CrossEntropyInputs,
    log_sum: Tensor,
    code: Tensor,
    needs: NeedsGrad,
) -> tuple[Tensor, ...]:
    return _linear.empty_gradients(linear, needs, lambda dtype: dtype)


@operator("linear_cross_entropy_with_grad")
def linear_cross_entropy_with_grad_op(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = registry.function("linear_cross_entropy_with_grad", linear.hidden, "")
    _check_values(linear, entropy)
    with _linear.no_autocast(linear.hidden.device):
        loss, made = run(linear.with_workspace(), entropy, needs)
    return loss.sum(dtype=torch.float64).to(loss.dtype), *made


@linear_cross_entropy_with_grad_op.register_fake
def _(linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad) -> tuple[Tensor, ...]:
    return _empty_loss(linear, ()), *_linear.empty_gradients(linear, needs, gradient_dtype)


def _empty_loss(linear: Linear, shape: tuple[int, ...]) -> Tensor:
    return linear.hidden.new_empty(shape, dtype=fp32_or_fp64(linear.dtype))


def _check_values(linear: Linear, entropy: CrossEntropyInputs) -> None:
    if values.enabled(entropy.target.device):
        check_target(linear, entropy)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    linear_cross_entropy_op.save(ctx, inputs, output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs = NeedsGrad(*ctx.needs_input_grad[:3])
    saved = linear_cross_entropy_op.saved_arguments(ctx)
    made = linear_cross_entropy_backward_op(grad_loss, *saved, needs)
    return tuple(g if need else None for g, need in zip(made, needs, strict=True))


linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)
linear_cross_entropy_backward_op.refuse_gradient(NO_SECOND_DERIVATIVE)
linear_cross_entropy_with_grad_op.register_autograd(
    _linear.scaled_gradients(NO_SECOND_DERIVATIVE), setup_context=_linear.keep_gradients
)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_weight: Tensor | None = None,
    *,
    excluded: int | Sequence[int] | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "none",
    rows: TouchedRows | None = None,
    workspace: int | None = None,
) -> Tensor:
    """Weighted cross entropy of the head f = hidden @ weight.T + bias, without its output.

        loss = row_weight * [ln(sum over y of exp(f_y)) - f_target + z_loss * (ln sum)^2]

    What MDLM, RADD, LLaDA and Dream minimise at masked positions, and autoregressive models at all.
    Rows of weight 0 or target ``ignore_index`` are never multiplied. "sum" and "mean" form the
    gradients in the forward pass: three matrix products where the workspace holds whole rows, four
    where the rows are formed again, whichever is faster; two where ``weight`` needs no gradient.
    "none" keeps the logarithm of every row's sum for its backward: one product, then three.

    Args:
        hidden: (B, L, H) or (N, H), what the head is applied to.
        weight: (states, H).
        bias: (states,) or None.
        target: (B, L) or (N,) int64 states; not read where a row has weight 0.
        row_weight: factor of every row, in the shape of ``target``; any float, also 0 and negative.
            Without gradient. None is 1.
        excluded: a state, or states, of probability 0: the mask, wherever it stands, or padding
            rows of an embedding. Their rows of ``weight`` and ``bias`` get no gradient.
        softcap: s: f becomes s * tanh(f / s) (Gemma 2, arXiv 2408.00118). None for none.
        z_loss: factor of the squared logarithm of the sum (PaLM, arXiv 2204.02311), which keeps it
            near 0.
        ignore_index: rows of this target carry no loss.
        reduction: "none", in the shape of ``target``; "sum"; or "mean", over the rows whose target
            is not ``ignore_index``, whatever their weight; NaN if there are none.
        rows: from :func:`touched_rows`: the only rows that are formed, so that the call does not
            synchronise a GPU.
        workspace: bytes of memory to work in besides the gradients; 256 MiB on a GPU, on a CPU a
            tenth of the output's size, at least 8 and at most 32 MiB.

    Returns:
        nats; float32, float64 for float64 operands. NaN where ``rows`` has overflowed.

    Under torch.autocast the products run in its dtype, blocks of the weight are converted on the
    way, and gradients come back in the dtypes of the operands. The gradient of ``weight`` is added
    up in float32, float64 for float64.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> loss = sf.linear_cross_entropy(
        ...     hidden, head.weight, head.bias, x_0, (x_t == mask) / t[:, None], excluded=mask,
        ...     reduction="mean",
        ... )

    Source: Sahoo et al. 2024 (arXiv 2406.07524), equation 10; Nie et al. 2025 (arXiv 2502.09992),
    equation 3.
    """
    arguments.check_choice("reduction", reduction, REDUCTIONS)
    linear = _linear.checked_softmax(hidden, weight, bias, rows, workspace)
    target = _like(hidden, target)
    row_weight = arguments.per_position("row_weight", row_weight, target, beside="target")
    arguments.check_numbers(z_loss=z_loss)
    if not abs(z_loss) < float("inf"):  # math.isfinite cannot be traced
        raise ValueError(f"z_loss must be finite, got {z_loss}; 0 is for none")
    ignore_index = arguments.check_count("ignore_index", ignore_index, least=-(2**63))
    ignored = target == ignore_index
    every = torch.ones((), dtype=torch.float64, device=target.device)
    factor = torch.where(ignored, 0, every if row_weight is None else row_weight.double())
    count = None
    if reduction == "mean":
        count = ignored.numel() - ignored.sum()
        factor = factor / count.clamp(min=1)
    entropy = CrossEntropyInputs(
        target.view(linear.hidden.shape[:2]), factor.view(linear.hidden.shape[:2]),
        _linear.checked_excluded(excluded, len(weight)), _linear.checked_softcap(softcap),
        float(z_loss),
    )  # fmt: skip
    loss = _loss(linear, entropy, reduction)
    if reduction == "none":
        loss = loss.view(target.shape)
    if count is not None:
        loss = torch.where(count > 0, loss, torch.nan)
    if rows is not None and rows.overflow is not None:
        loss = torch.where(rows.overflow, torch.nan, loss)
    return loss


def _loss(linear: Linear, entropy: CrossEntropyInputs, reduction: Reduction) -> Tensor:
    """(B, L), or for "mean" and "sum" the sum, ()."""
    operands = (linear.hidden, linear.weight, linear.bias)
    needs = NeedsGrad(*(x is not None and x.requires_grad for x in operands))
    if reduction != "none" and any(needs) and _linear.gradients_ahead():
        return linear_cross_entropy_with_grad_op(linear, entropy, needs)[0]
    loss, *_ = linear_cross_entropy_op(linear, entropy)
    return loss if reduction == "none" else loss.sum()


def _like(hidden: Tensor, target: Tensor) -> Tensor:
    """The target, after checks of its dtype, shape and device."""
    arguments.check_tokens("target", target, tuple(hidden.shape[:-1]))
    arguments.check_device("target", target, hidden, "hidden")
    return target
