"""The closed-form transition ratios of both graphs, for torch code.

Score entropy and a reverse step are affine in a few reductions over a row of log scores l
(S = sum over y != x_t of exp(l_y), E = expm1(sigma)):

    loss    = a * S - b * sum_{y != x_t} l_y - c * l_{x_0} + k
    weights = alpha * max(0, exp(l_y) + beta) for y != x_t,   max(0, gamma) for y = x_t

so that a kernel needs nothing but the coefficients below. ``csrc/common/coefficients.h`` has them
for C++ and CUDA, ``kernels/coefficients.py`` for Triton. Everything here is float64: k and c *
l_{x_0} are near 1e6 and cancel at small noise.

Only the ratios of weights count. They are scaled so that none overflows at any noise level, and so
that alpha is 0 exactly where no noise is removed.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equations 5, 15-19, in closed form.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs

#: The least normal float64, for what must not become 0.
LEAST = torch.finfo(torch.float64).tiny
#: An alpha below this is scaled up.
TINY_ALPHA = 1e-150


class EntropyCoefficients(NamedTuple):
    """Per position, (B, L) float64. ``a`` is 0 exactly where the row need not be read."""

    a: Tensor
    b: Tensor
    c: Tensor
    k: Tensor


class ReverseCoefficients(NamedTuple):
    """Per position, (B, L) float64. ``alpha`` is 0 exactly where the token cannot move."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


def log_expm1(sigma: Tensor) -> Tensor:
    """ln(exp(sigma) - 1) without overflow."""
    return sigma + torch.log(-torch.expm1(-sigma))


def entropy_coefficients(entropy: EntropyInputs) -> EntropyCoefficients:
    """Coefficients of the score entropy in log scores."""
    x_t, x_0, size = entropy.x_t, entropy.x_0, float(entropy.vocab_size)
    sigma = entropy.sigma.double()[:, None].expand(x_t.shape)  # (B, L)
    log_e, inv_e = log_expm1(sigma), torch.exp(-sigma) / -torch.expm1(-sigma)
    zero = torch.zeros_like(log_e)
    if entropy.graph == "absorbing":
        masked = x_t == entropy.mask_index
        k = torch.where(masked, (-log_e - 1) * inv_e, zero)
        return EntropyCoefficients(masked.double(), zero, torch.where(masked, inv_e, zero), k)
    # rho = E / (E + V), not 1 - V / (E + V), which loses its digits at small sigma.
    rho = 1 / (1 + size * inv_e)
    log_rho = -torch.log1p(size * inv_e)
    same = x_t == x_0
    b = torch.where(same, rho, torch.ones_like(rho)) / size
    c = torch.where(same, zero, inv_e)
    k_same = (size - 1) / size * rho * (log_rho - 1)
    k_moved = ((-log_rho - 1) / rho - (size - 2)) / size
    return EntropyCoefficients(zero + 1 / size, b, c, torch.where(same, k_same, k_moved))


def log_output_scale(sigma: Tensor, vocab_size: int) -> Tensor:
    """ln E + ln V: what a network scaled by sigma subtracts from its raw outputs f."""
    return log_expm1(sigma) + math.log(vocab_size)


def head_coefficients(entropy: EntropyInputs) -> EntropyCoefficients:
    """Coefficients of the score entropy in the raw outputs f of a head.

    With l = f - ln E - ln V (``scale_by_sigma``, absorbing), E cancels from what is exponentiated:

        loss = (1/E) * [sum exp(f_y) / V - 1 + ln V - f_{x_0}]
    """
    a, b, c, k = entropy_coefficients(entropy)
    if entropy.scale_by_sigma:
        a, k = c / entropy.vocab_size, c * (math.log(entropy.vocab_size) - 1)
    return EntropyCoefficients(a, b, c, k)


def is_identity(reverse: ReverseInputs) -> Tensor:
    """(B,) bool: where a step removes no noise, so that nothing moves and no score is read."""
    still = reverse.dsigma == 0
    return torch.zeros_like(still) if reverse.method == "denoise" else still


def reverse_coefficients(
    reverse: ReverseInputs, sum_exp: Tensor, shift: Tensor
) -> ReverseCoefficients:
    """Coefficients of a reverse step for log scores from which ``shift`` was subtracted.

    The weights are homogeneous of degree one in (exp(l), 1), so a row may be shifted by its
    maximum m before exponentiating: pass ``sum_exp`` = S * exp(-m) and ``shift`` = m, both (B, L)
    float64; for the uniform graph an m of at least -700.
    """
    x_t, dsigma, method = reverse.x_t, reverse.dsigma.double(), reverse.method
    size = float(reverse.vocab_size)
    if reverse.graph == "absorbing":
        zero, one = torch.zeros_like(shift), torch.ones_like(shift)
        if method == "denoise":
            alpha, gamma = one, zero
        else:
            if method == "analytic":
                alpha, log_stay = -torch.expm1(-dsigma)[:, None], -dsigma[:, None]
            else:
                alpha, stay = _euler(dsigma)
                log_stay = stay.log()
            stay = (log_stay - shift).clamp(max=700).exp()
            # A row of no weight stays, however much noise is removed.
            gamma = torch.where(sum_exp == 0, one, stay - alpha * sum_exp)
        masked = x_t == reverse.mask_index
        alpha, gamma = torch.where(masked, alpha, zero), torch.where(masked, gamma, one)
        return _in_range(alpha, zero, gamma)
    unit = torch.exp(-shift)
    if method == "euler":
        alpha, stay = _euler(dsigma)
        gamma = size * stay * unit - alpha * sum_exp
        return _in_range(alpha.expand(x_t.shape), torch.zeros_like(unit), gamma)
    e, lost = kept_and_lost(reverse)
    beta = -lost * (sum_exp + unit) / size
    return _in_range(lost.expand(x_t.shape), beta, (size * e + lost) * (unit + beta))


def _in_range(alpha: Tensor, beta: Tensor, gamma: Tensor) -> ReverseCoefficients:
    """With a tiny alpha scaled up: in subnormal numbers its products would lose their digits."""
    scale = torch.ones_like(alpha).masked_fill((alpha > 0) & (alpha < TINY_ALPHA), 1e120)
    return ReverseCoefficients(alpha * scale, beta, (gamma * scale).clamp(max=1e306))


def kept_and_lost(reverse: ReverseInputs) -> tuple[Tensor, Tensor]:
    """exp(-d) and 1 - exp(-d) of the noise d that an analytic or denoising step removes: (B, 1)."""
    removed = reverse.sigma if reverse.method == "denoise" else reverse.dsigma
    removed = removed.double()[:, None]
    return torch.exp(-removed).clamp(min=LEAST), -torch.expm1(-removed)


def uniform_excess(reverse: ReverseInputs, sum_deviations: Tensor, unit: Tensor) -> Tensor:
    """1 + beta of an analytic or denoising step of the uniform graph, times ``unit``, (B, L).

    With deviations v_y = exp(l_y) - 1 the weights are alpha * max(0, v_y + (1 + beta)). Where much
    noise is removed, 1 + beta = e (1 + mean v) - mean v over all states (v = 0 at x_t), which has
    all its digits where the scores are nearly 0 and those of exp(l_y) + beta cancel.
    """
    e, lost = kept_and_lost(reverse)
    mean = sum_deviations / float(reverse.vocab_size)
    return torch.where(lost > 0.5, e * (unit + mean) - mean, unit - lost * (unit + mean))


def _euler(dsigma: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and what stays of 1, (B, 1), both divided by dsigma where that is above 1."""
    scale = dsigma.clamp(min=1)[:, None]
    return dsigma[:, None] / scale, 1 / scale
