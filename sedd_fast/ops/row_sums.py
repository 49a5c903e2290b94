"""row_sums: one sum over each touched row of scores, of a named term; what losses are made of."""

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.inputs import RowSumInputs
from sedd_fast.names import TERMS, Term
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._operator import operator


@operator("row_sums")
def row_sums_op(
    log_score: Tensor, sums: RowSumInputs
) -> tuple[Tensor, Tensor, registry.BackendCode]:
    run, code = registry.implementation("row_sums", log_score, sums.graph)
    values.check_for(run, sums)
    return *run(log_score, sums), code


@operator("row_sums_backward")
def row_sums_backward_op(
    grad_total: Tensor, grad_log_x_0: Tensor, log_score: Tensor, sums: RowSumInputs, code: Tensor
) -> tuple[Tensor, Tensor]:
    run = registry.by_code("row_sums_backward", code)
    return run(grad_total, grad_log_x_0, log_score, sums)


def _empty(log_score: Tensor) -> Tensor:
    return log_score.new_empty(log_score.shape[:2], dtype=torch.float64)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    log_score, sums, code = row_sums_op.saved_arguments(ctx)
    upstream = (torch.zeros_like(sums.a) if grad is None else grad for grad in grads[:2])
    gradient, grad_b = row_sums_backward_op(*upstream, log_score, sums, code)
    return gradient, None, None, None, grad_b


row_sums_op.register_fake(lambda scores, _: (_empty(scores), _empty(scores), registry.fake_code()))
row_sums_backward_op.register_fake(
    lambda _, __, scores, *___: (scores.new_empty(scores.shape), _empty(scores))
)
row_sums_op.register_autograd(_backward)
row_sums_backward_op.refuse_gradient(
    "row_sums has no second derivative: its backward is a fused kernel. For gradient "
    "penalties write the loss in plain torch (sedd_fast.backends.reference shows how)"
)


def row_sums(
    log_score: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    graph: arguments.GraphLike,
    term: Term,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A sum over each row of scores l, and the score at x_0, in one pass over the touched rows.

        total = sum over y != x_t of f(a exp(l_y) + b)
        f(z) = z ("affine"), z^2 ("square"), ln z ("log")

    Losses of discrete diffusion are such sums with a little arithmetic a position
    (``sedd_fast.losses``). An absorbing position that is not masked, or any with a = 0, costs
    nothing: its row is never read, and both results are 0.

    Args:
        log_score: (B, L, graph.dim), the network's log scores; the value at x_t is not read and
            counts as 0. float32, bfloat16, float16 or float64, any strides.
        x_t: (B, L) int64, noised tokens.
        x_0: (B, L) int64, clean tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        term: "affine", "square" or "log".
        a: (B, L), 1 if None. One that is not finite makes both results NaN, with zero gradient.
        b: (B, L), 0 if None; may require a gradient.

    Returns:
        ``(total, log_x_0)``, both (B, L) float64, differentiable in ``log_score``, the first also
        in ``b``. A "log" of what is not positive is NaN or -inf, as the logarithm is.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Example:
        >>> total, log_x_0 = row_sums(log_score, x_t, x_0, graph, "affine")
        >>> cross_entropy = total.log() - log_x_0  # at masked positions of the absorbing graph
    """
    arguments.check_choice("term", term, TERMS)
    arguments.check_rows(log_score, graph, x_t=x_t, x_0=x_0)
    scale = arguments.per_position("a", a, x_t)
    scale = torch.ones_like(x_t, dtype=torch.float64) if scale is None else scale.double()
    if graph.mask_index is not None:
        scale = scale * (x_t == graph.mask_index)  # not where(): a NaN must not go unseen
    shift = arguments.per_position("b", b, x_t, differentiable=True)
    shift = torch.zeros_like(scale) if shift is None else shift.double()
    sums = RowSumInputs(x_t, x_0, scale, shift, term, *arguments.process(graph))
    total, log_x_0, _ = row_sums_op(log_score, sums)
    return total, log_x_0
