"""score_entropy: the training loss of SEDD, forward, recomputing backward, and both in one pass."""

from typing import Any

from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.names import REDUCTIONS, Reduction
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._operator import operator


@operator("score_entropy")
def score_entropy_op(
    log_score: Tensor, entropy: EntropyInputs
) -> tuple[Tensor, registry.BackendCode]:
    run, code = registry.implementation("score_entropy", log_score, entropy.graph)
    values.check_for(run, entropy)
    return run(log_score, entropy), code


@operator("score_entropy_backward")
def score_entropy_backward_op(
    grad_loss: Tensor, log_score: Tensor, entropy: EntropyInputs, code: Tensor
) -> Tensor:
    return registry.by_code("score_entropy_backward", code)(grad_loss, log_score, entropy)


@operator("score_entropy_with_grad")
def score_entropy_with_grad_op(
    log_score: Tensor, entropy: EntropyInputs, scale: float
) -> tuple[Tensor, Tensor]:
    run = registry.function("score_entropy_with_grad", log_score, entropy.graph)
    values.check_for(run, entropy)
    return run(log_score, entropy, scale)


@score_entropy_with_grad_op.register_fake
def _(log_score: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    gradient = log_score.new_empty(log_score.shape, dtype=gradient_dtype(log_score.dtype))
    return _empty_loss(log_score), gradient


def _empty_loss(log_score: Tensor) -> Tensor:
    return log_score.new_empty(log_score.shape[:2], dtype=fp32_or_fp64(log_score.dtype))


def _backward(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor]:
    return (score_entropy_backward_op(grad_loss, *score_entropy_op.saved_arguments(ctx)),)


score_entropy_op.register_fake(lambda scores, _: (_empty_loss(scores), registry.fake_code()))
score_entropy_backward_op.register_fake(lambda _, scores, *__: scores.new_empty(scores.shape))
score_entropy_op.register_autograd(_backward)
score_entropy_backward_op.refuse_gradient(
    "score_entropy has no second derivative: its backward is a fused kernel. For gradient "
    "penalties write the loss in plain torch (sedd_fast.backends.reference shows how)"
)
score_entropy_with_grad_op.refuse_gradient(
    "score_entropy_with_grad returns its gradient itself and cannot be differentiated; call "
    "log_score.backward(grad), or use score_entropy under autograd"
)


def score_entropy(
    log_score: Tensor,
    sigma: Tensor | float,
    x_t: Tensor,
    x_0: Tensor,
    graph: arguments.GraphLike,
    row_weight: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """Score entropy of every position, differentiable in ``log_score``.

    With s = exp(log_score) and the transition ratios r_y = p(y | x_0) / p(x_t | x_0),

        loss = sum over y != x_t of w_y * (s_y - r_y ln s_y + r_y (ln r_y - 1)),

    w_y the rate of the jump that noise makes (1 from the mask, 1/V uniformly). It is at least 0
    and 0 exactly at s = r. One pass over a row of scores; an absorbing position that is not
    masked, or any of weight 0, costs nothing and its row is never read.

    Args:
        log_score: (B, L, graph.dim), the network's log scores, 0 at x_t (the value there is not
            read); float32, bfloat16, float16 or float64, any strides.
        sigma: total noise, a number, (B,) or (B, 1); positive.
        x_t: (B, L) int64, noised tokens.
        x_0: (B, L) int64, clean tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        row_weight: (B, L), multiplies the loss of each position; training uses the noise rate
            sigma'(t). None is 1. One that is not finite makes the loss NaN, with zero gradient.
        reduction: "none", "sum" or "mean" (over all B * L positions, masked or not; of none NaN).

    Returns:
        (B, L) in nats, or () for "sum" and "mean"; float64 for float64 scores, else float32.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> loss = score_entropy(model(x_t, sigma), sigma, x_t, x_0, graph, row_weight=weight)
        >>> loss.sum(-1).mean().backward()

    Source: Lou, Meng, Ermon 2024, equations 5 and 10.
    """
    arguments.check_choice("reduction", reduction, REDUCTIONS)
    entropy = _checked(log_score, sigma, x_t, x_0, graph, row_weight)
    loss, _ = score_entropy_op(log_score, entropy)
    return arguments.reduce(loss, reduction)


def score_entropy_with_grad(
    log_score: Tensor,
    sigma: Tensor | float,
    x_t: Tensor,
    x_0: Tensor,
    graph: arguments.GraphLike,
    row_weight: Tensor | None = None,
    reduction: Reduction = "sum",
) -> tuple[Tensor, Tensor]:
    """Score entropy and its gradient in one pass: one read of the touched rows, one write.

    For loops that know the weight of every position beforehand; autograd must read the scores
    twice, because it learns the weights only after the loss.

    Args:
        log_score, sigma, x_t, x_0, graph, row_weight: as in :func:`score_entropy`.
        reduction: "sum" or "none": the gradient of the sum; "mean": of the sum over B * L.

    Returns:
        ``(loss, grad)``: the loss, reduced as asked, and the gradient, (B, L, graph.dim), in the
        dtype of log_score (float32 for float16: scale it before it is rounded). Both detached.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> log_score = model(x_t, sigma)
        >>> loss, grad = score_entropy_with_grad(log_score, sigma, x_t, x_0, graph, weight)
        >>> log_score.backward(grad)
    """
    arguments.check_choice("reduction", reduction, REDUCTIONS)
    entropy = _checked(log_score, sigma, x_t, x_0, graph, row_weight)
    scores = arguments.without_gradient(log_score)
    scale = arguments.factor_of_each(x_t, reduction)
    loss, grad = score_entropy_with_grad_op(scores, entropy, scale)
    return arguments.reduce(loss, reduction), grad


def _checked(
    log_score: Tensor,
    sigma: Tensor | float,
    x_t: Tensor,
    x_0: Tensor,
    graph: arguments.GraphLike,
    row_weight: Tensor | None,
) -> EntropyInputs:
    arguments.check_rows(log_score, graph, x_t=x_t, x_0=x_0)
    sigma = arguments.per_sequence("sigma", sigma, x_t)
    row_weight = arguments.per_position("row_weight", row_weight, x_t)
    return EntropyInputs(sigma, x_t, x_0, row_weight, *arguments.process(graph))
