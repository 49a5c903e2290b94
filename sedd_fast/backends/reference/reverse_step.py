"""reverse_step and the distribution that it draws from, in plain torch."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.categorical import inverse_cdf
from sedd_fast.backends.coefficients import (
    kept_and_lost,
    log_output_scale,
    reverse_coefficients,
    uniform_excess,
)
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.reference.rows import other_states
from sedd_fast.backends.reference.shares import reshaped_exp


def reverse_step(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): u0 decides whether the token moves, u1 where to, by the inverse CDF."""
    assert reverse.u is not None
    u = reverse.u
    weights, stay = reverse_weights(log_score, reverse)
    cdf = weights.cumsum(-1)  # (B, L, dim) float64, states in natural order
    moving = cdf[..., -1]
    total = moving + stay
    drawable = (total > 0) & torch.isfinite(total)
    values.check_drawable(drawable)
    moved = inverse_cdf(cdf, u[..., 1])
    return torch.where(drawable & (u[..., 0] * total < moving), moved, reverse.x_t).contiguous()


def reverse_weights(log_score: Tensor, reverse: ReverseInputs) -> tuple[Tensor, Tensor]:
    """Unnormalised probabilities of a step: (B, L, dim) float64 with 0 at x_t; (B, L) for x_t.

    Rows are shifted by their maximum, so no finite score overflows; this changes no probability.
    """
    others = other_states(reverse.x_t, log_score.shape[-1])
    exp_scores, deviations, shift = _shifted_exp(log_score, reverse)
    alpha, beta, gamma = reverse_coefficients(reverse, exp_scores.sum(-1), shift)
    weights = exp_scores + beta[..., None]
    if reverse.graph == "uniform" and reverse.method != "euler":
        excess = uniform_excess(reverse, deviations.sum(-1), torch.exp(-shift))
        e, lost = kept_and_lost(reverse)
        weights = torch.where(lost[..., None] > 0.5, deviations + excess[..., None], weights)
        gamma = torch.where(lost > 0.5, (reverse.vocab_size * e + lost) * excess, gamma)
    # Nothing of a row is read that is not touched, or from which no noise is removed: it stays.
    read = reverse.touched() & (alpha > 0)
    moves, gamma = others & read[..., None], torch.where(read, gamma, 1.0)
    weights = alpha[..., None] * torch.where(moves, weights, 0).clamp(min=0)
    return weights, gamma.clamp(min=0)


def _shifted_exp(log_score: Tensor, reverse: ReverseInputs) -> tuple[Tensor, Tensor, Tensor]:
    """exp(l_y - m) and exp(l_y - m) - exp(-m), 0 at x_t, (B, L, dim) float64; m, (B, L): the
    largest score of the row. Raw outputs f of l = f - ln E - ln V are shifted as they are.
    """
    others = other_states(reverse.x_t, log_score.shape[-1])
    scores = torch.where(others, log_score.double(), -torch.inf)
    shift = scores.amax(-1, keepdim=True)
    if reverse.graph == "uniform":
        shift = shift.clamp(min=-700)  # exp(700) is still a float64
    shift = torch.where(shift == -torch.inf, 0.0, shift)
    unit = torch.exp(-shift)
    if reverse.changes_shares:
        temperature = 1 / reverse.inverse_temperature  # in the range of the kernels
        exp_scores = reshaped_exp(scores, shift, temperature, reverse.top_p)
        deviations = exp_scores - unit
    else:
        exp_scores = torch.exp(scores - shift)
        deviations = torch.where(scores < 1, unit * torch.expm1(scores), exp_scores - unit)
    shift = shift.squeeze(-1)
    if reverse.scale_by_sigma:
        shift = shift - log_output_scale(reverse.sigma.double(), reverse.vocab_size)[:, None]
    return exp_scores, torch.where(others, deviations, 0), shift


def reverse_probs(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """(B, L, dim): the probabilities of :func:`reverse_step`, float32 or float64."""
    weights, stay = reverse_weights(log_score, reverse)
    total = weights.sum(-1) + stay
    values.check_drawable((total > 0) & torch.isfinite(total))
    probs = weights.scatter(-1, reverse.x_t[..., None], stay[..., None]) / total[..., None]
    return probs.to(at_least_fp32(log_score).dtype).contiguous()


def reverse_probs_backward(grad_probs: Tensor, log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """(B, L, dim) in the dtype of log_score: the chain rule through :func:`reverse_probs`.

    With weights w of sum W, p = w / W and h = (grad - sum grad * p) / W, the gradient in l_y is
    exp(l_y) * (alpha * (h_y + dbeta/dS * sum of h_z) + dgamma/dS * h_{x_t}), each h only where its
    weight is above 0. beta and gamma are linear in (S, exp(-m)): their slope is their value at
    (1, 0).
    """
    weights, stay = reverse_weights(log_score, reverse)
    total = (weights.sum(-1) + stay)[..., None]
    own = reverse.x_t[..., None]
    probs = weights.scatter(-1, own, stay[..., None]) / total
    grad = grad_probs.double()
    h = (grad - (grad * probs).sum(-1, keepdim=True)) / total  # (B, L, dim)
    one, infinity = torch.ones_like(stay), torch.full_like(stay, torch.inf)
    alpha, slope_beta, slope_gamma = reverse_coefficients(reverse, one, infinity)
    h_moves = torch.where(weights > 0, h, 0)
    h_stay = torch.where(stay > 0, h.gather(-1, own).squeeze(-1), 0)
    shared = alpha * slope_beta * h_moves.sum(-1) + slope_gamma * h_stay  # (B, L)
    exp_scores, *_ = _shifted_exp(log_score, reverse)
    gradient = exp_scores * (alpha[..., None] * h_moves + shared[..., None])
    read = reverse.touched() & (alpha > 0)
    gradient = torch.where(read[..., None] & (exp_scores > 0), gradient, 0)
    return gradient.to(log_score.dtype).contiguous()
