"""linear_reverse_step: the next tokens straight from hidden states."""

import torch
from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.names import STEP_METHODS, StepMethod
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import _linear
from sedd_fast.ops._operator import operator
from sedd_fast.ops._uniforms import uniforms
from sedd_fast.ops.touched_rows import TouchedRows


@operator("linear_reverse_step")
def linear_reverse_step_op(linear: Linear, reverse: ReverseInputs) -> Tensor:
    run = registry.function("linear_reverse_step", linear.hidden, reverse.graph)
    values.check_for(run, reverse)
    with _linear.no_autocast(linear.hidden.device):
        return run(linear, reverse)


linear_reverse_step_op.register_fake(lambda _, reverse: reverse.x_t.new_empty(reverse.x_t.shape))


def linear_reverse_step(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_t: Tensor,
    sigma: Tensor | float,
    dsigma: Tensor | float | None,
    graph: arguments.GraphLike,
    method: StepMethod = "analytic",
    scale_by_sigma: bool = True,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
    rows: TouchedRows | None = None,
    workspace: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """One reverse step from the head f = hidden @ weight.T + bias, for the rows that may move.

    The same distribution, and for the same ``u`` the same tokens (up to rounding of the product),
    as ``reverse_step(l, ...)`` with l = f, or f - ln(expm1(sigma)) - ln(V) (``scale_by_sigma``).
    Rows of an absorbing graph that are not masked are never formed; the others a few at a time.

    Args:
        hidden: (B, L, H), what the head is applied to.
        weight: (graph.dim, H).
        bias: (graph.dim,) or None.
        x_t, sigma, dsigma, graph, method, generator, u, temperature, top_p: as in
            :func:`reverse_step`.
        scale_by_sigma, rows, workspace: as in :func:`linear_score_entropy`.

    Returns:
        x_s: (B, L) int64. Positions that did not fit into ``rows`` (its ``overflow`` is True) stay.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value, or (on the CPU) a row from
            which no token can be drawn; the message says which.
    """
    arguments.check_choice("method", method, STEP_METHODS)
    shares = arguments.check_shares(temperature, top_p)
    linear = _linear.checked_linear(hidden, weight, bias, graph, rows, workspace).detach()
    _linear.check_inputs(hidden, graph, scale_by_sigma, x_t=x_t)
    sigma, dsigma = arguments.noise_removed(sigma, dsigma, method, x_t)
    drawn = uniforms(x_t, u, generator)
    process = (*arguments.process(graph), method, scale_by_sigma, *shares)
    return linear_reverse_step_op(linear, ReverseInputs(x_t, sigma, dsigma, drawn, *process))
