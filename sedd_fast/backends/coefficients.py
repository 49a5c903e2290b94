"""The closed-form transition ratios of both graphs, for torch code.

Score entropy and a reverse step are affine in a few reductions over a row of log scores l
(S = sum over y != x_t of exp(l_y), E = expm1(sigma)):

    loss    = a * S - b * sum_{y != x_t} l_y - c * l_{x_0} + k
    weights = max(0, alpha * exp(l_y) + beta) for y != x_t,   max(0, gamma) for y = x_t

so that a kernel needs nothing but the coefficients below. ``csrc/common/coefficients.h`` has them
for C++ and CUDA, ``kernels/coefficients.py`` for Triton. Everything here is float64: k and c *
l_{x_0} are near 1e6 and cancel at small noise.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equations 5, 15-19, in closed form.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs


class EntropyCoefficients(NamedTuple):
    """Per position, (B, L) float64. ``a`` is 0 exactly where the row need not be read."""

    a: Tensor
    b: Tensor
    c: Tensor
    k: Tensor


class ReverseCoefficients(NamedTuple):
    """Per position, (B, L) float64. ``alpha`` is 0 where the token cannot move."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


def log_expm1(sigma: Tensor) -> Tensor:
    """ln(exp(sigma) - 1) without overflow."""
    return sigma + torch.log(-torch.expm1(-sigma))


def entropy_coefficients(entropy: EntropyInputs) -> EntropyCoefficients:
    """Coefficients of the score entropy in log scores."""
    x_t, x_0, size = entropy.x_t, entropy.x_0, float(entropy.vocab_size)
    log_e = log_expm1(entropy.sigma.double())[:, None].expand(x_t.shape)  # (B, L)
    inv_e = torch.exp(-log_e)
    zero = torch.zeros_like(log_e)
    if entropy.graph == "absorbing":
        masked = x_t == entropy.vocab_size
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


def reverse_coefficients(
    reverse: ReverseInputs, sum_exp: Tensor, unit: Tensor
) -> ReverseCoefficients:
    """Coefficients of a reverse step in log scores, for weights that are all scaled by ``unit``.

    The weights are homogeneous of degree one in (exp(l), 1), so a row may be shifted by its
    maximum m before exponentiating: pass ``sum_exp`` = S * exp(-m) and ``unit`` = exp(-m), both
    (B, L) float64.
    """
    x_t, dsigma, method = reverse.x_t, reverse.dsigma.double(), reverse.method
    if reverse.graph == "absorbing":
        masked = x_t == reverse.vocab_size
        if method == "denoise":
            alpha, gamma = torch.ones_like(unit), torch.zeros_like(unit)
        else:
            step = torch.expm1(dsigma) if method == "analytic" else dsigma
            alpha = step[:, None].expand(x_t.shape)
            gamma = unit - alpha * sum_exp
        zero, gamma = torch.zeros_like(unit), torch.where(masked, gamma, unit)
        return ReverseCoefficients(torch.where(masked, alpha, zero), zero, gamma)
    size = float(reverse.vocab_size)
    if method == "euler":
        alpha = (dsigma / size)[:, None].expand(x_t.shape)
        return ReverseCoefficients(alpha, torch.zeros_like(unit), unit - alpha * sum_exp)
    removed = reverse.sigma.double() if method == "denoise" else dsigma
    e = torch.exp(-removed)[:, None].expand(x_t.shape)
    lost = -torch.expm1(-removed)[:, None].expand(x_t.shape)  # 1 - e
    total = sum_exp + unit  # T = S + 1
    alpha = lost / (size * e)
    beta = -alpha * lost * total / size
    gamma = (unit / e - lost * total / (size * e)) * (e + lost / size)
    return ReverseCoefficients(alpha, beta, gamma)
