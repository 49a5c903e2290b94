"""reverse_step: one denoising step, and reverse_probs, the distribution that it draws from."""

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import reference, registry, values
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.names import STEP_METHODS, StepMethod
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._operator import operator
from sedd_fast.ops._uniforms import uniforms


@operator("reverse_step")
def reverse_step_op(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    run = registry.function("reverse_step", log_score, reverse.graph)
    values.check_for(run, reverse)
    return run(log_score, reverse)


@operator("reverse_probs")
def reverse_probs_op(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    run = registry.function("reverse_probs", log_score, reverse.graph)
    values.check_for(run, reverse)
    return run(log_score, reverse)


@reverse_probs_op.register_fake
def _(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    return log_score.new_empty(log_score.shape, dtype=fp32_or_fp64(log_score.dtype))


@operator("reverse_probs_backward")
def reverse_probs_backward_op(
    grad_probs: Tensor, log_score: Tensor, reverse: ReverseInputs
) -> Tensor:
    # The reference's on every backend: its speed does not matter.
    return reference.reverse_probs_backward(grad_probs, log_score, reverse)


def _backward(ctx: Any, grad_probs: Tensor) -> tuple[Tensor]:
    log_score, reverse = reverse_probs_op.saved_arguments(ctx)
    if reverse.changes_shares:
        raise RuntimeError(
            "reverse_probs has a gradient at temperature 1 and top_p 1 only, got "
            f"{reverse.temperature} and {reverse.top_p}"
        )
    return (reverse_probs_backward_op(grad_probs, log_score, reverse),)


reverse_step_op.register_fake(lambda _, reverse: reverse.x_t.new_empty(reverse.x_t.shape))
reverse_probs_backward_op.register_fake(lambda _, scores, __: scores.new_empty(scores.shape))
reverse_probs_op.register_autograd(_backward)
reverse_probs_backward_op.refuse_gradient(
    "reverse_probs has no second derivative; write the distribution in plain torch instead "
    "(sedd_fast.backends.reference.reverse_weights)"
)


def reverse_step(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor | float,
    dsigma: Tensor | float | None,
    graph: arguments.GraphLike,
    method: StepMethod = "analytic",
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """One reverse step: every position drawn once from its distribution given the network's scores.

    The distribution is a categorical, p(y) = max(0, alpha exp(l_y) + beta) for y != x_t and
    p(x_t) = max(0, gamma), normalised; alpha, beta, gamma by method:

    - "analytic": the exact reverse of the noise removed, with the scores held fixed
      (Tweedie tau-leaping, equation 19); ``dsigma`` = sigma(t) - sigma(s).
    - "euler": one Euler step of the reverse rates (tau-leaping, equation 17); ``dsigma`` = step
      size times noise rate.
    - "denoise": all remaining noise at once; an absorbing draw is never the mask. ``dsigma`` is
      not read and may be None.

    The draw is a hierarchical inverse CDF: one read of a row gives the sums of its chunks, and
    one chunk is read again. Same ``u``, same tokens, on every backend.

    ``temperature`` and ``top_p`` change the model's distribution. They change the shares
    exp(l_y) / S of the states y != x_t and keep their sum S, so they change which token a position
    jumps to and not whether it jumps (but for "analytic" and "denoise" of a uniform graph, whose
    weights are clamped at 0; there they nearly keep it).
    They cost further reads of the rows that move.

    Args:
        log_score: (B, L, graph.dim) log scores; any float dtype and strides.
        x_t: (B, L) int64, current tokens.
        sigma: total noise now, a number, (B,) or (B, 1); positive.
        dsigma: as the method has it; a number, (B,) or (B, 1); at least 0.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        method: "analytic", "euler" or "denoise".
        generator: source of the uniforms; torch's default one if None.
        u: (B, L, 2) float64 in [0, 1) instead of a draw: u0 stay or move, u1 the token.
        temperature: T > 0; shares become proportional to exp(l_y / T).
        top_p: p in (0, 1]; only the states of the largest shares, as few as reach p, and all that
            equal the least of them. After the temperature.

    Returns:
        x_s: (B, L) int64. Absorbing positions that are not masked stay as they are.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value, or (on the CPU) a row of
            scores from which no token can be drawn; the message says which.

    Source: Lou, Meng, Ermon 2024, section 4 and algorithm 2.
    """
    sigma, dsigma = _checked(log_score, x_t, sigma, dsigma, graph, method)
    shares = arguments.check_shares(temperature, top_p)
    drawn = uniforms(x_t, u, generator)
    process = (*arguments.process(graph), method, False, *shares)
    scores = arguments.without_gradient(log_score)
    return reverse_step_op(scores, ReverseInputs(x_t, sigma, dsigma, drawn, *process))


def reverse_probs(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor | float,
    dsigma: Tensor | float | None,
    graph: arguments.GraphLike,
    method: StepMethod = "analytic",
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """The distribution that :func:`reverse_step` draws from, in full; for study and tests.

    Args: as in :func:`reverse_step`.

    Returns:
        (B, L, graph.dim), each row summing to 1; float64 for float64 scores, else float32.
        Differentiable in log_score, at temperature 1 and top_p 1.

    Raises:
        TypeError, ValueError: as in :func:`reverse_step`.
    """
    sigma, dsigma = _checked(log_score, x_t, sigma, dsigma, graph, method)
    shares = arguments.check_shares(temperature, top_p)
    process = (*arguments.process(graph), method, False, *shares)
    return reverse_probs_op(log_score, ReverseInputs(x_t, sigma, dsigma, None, *process))


def _checked(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor | float,
    dsigma: Tensor | float | None,
    graph: arguments.GraphLike,
    method: StepMethod,
) -> tuple[Tensor, Tensor]:
    """sigma and dsigma, (B,)."""
    arguments.check_choice("method", method, STEP_METHODS)
    arguments.check_rows(log_score, graph, x_t=x_t)
    return arguments.noise_removed(sigma, dsigma, method, x_t)
