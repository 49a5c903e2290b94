"""The closed-form transition ratios of both graphs, for Triton kernels.

    loss                = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k, sums over y != x_t
    weight of y != x_t  = alpha * max(0, exp(l_y) + beta);  weight of x_t = max(0, gamma)

No other Triton file repeats them. ``sedd_fast.backends.coefficients`` has the same formulas for
torch, with explanations, and ``csrc/common/coefficients.h`` for C++ and CUDA. Everything is
float64: at small noise, k and c * l_{x_0} are near 1e6 and cancel. expm1 and log1p are built from
exp and log (Kahan's quotients), because the libraries that have them exist for one vendor only.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

ANALYTIC = tl.constexpr(0)
EULER = tl.constexpr(1)
DENOISE = tl.constexpr(2)
#: The least normal float64, for what must not become 0.
LEAST = tl.constexpr(2.2250738585072014e-308)


@triton.jit
def expm1(x):
    """exp(x) - 1 in float64, exact to a few units in the last place for any x."""
    u = tl.exp(x)
    # (u - 1) / ln(u) is smooth in u, so the rounding of u hardly changes it.
    log_u = tl.log(tl.where(u == 0.0, 1.0, u))
    quotient = (u - 1.0) * (x / tl.where(log_u == 0.0, 1.0, log_u))
    small = tl.where(log_u == 0.0, x, quotient)
    return tl.where(u == 0.0, -1.0, tl.where(u > 1e300, u, small))


@triton.jit
def log1p(x):
    """ln(1 + x) in float64 for x > -1."""
    w = 1.0 + x
    quotient = tl.log(w) * (x / tl.where(w == 1.0, 1.0, w - 1.0))
    return tl.where(w == 1.0, x, tl.where(w > 1e300, tl.log(w), quotient))


@triton.jit
def log_expm1(x):
    """ln(exp(x) - 1) in float64 without overflow."""
    return x + tl.log(-expm1(-x))


@triton.jit
def log_output_scale(sigma, vocab):
    """ln E + ln V: what a network scaled by sigma subtracts from its raw outputs."""
    return log_expm1(sigma) + tl.log(vocab.to(tl.float64))


@triton.jit
def entropy_coefficients(sigma, x_t, x_0, vocab, mask, ABSORBING: tl.constexpr):
    """(a, b, c, k) of one position, float64; a is 0 exactly where its row need not be read."""
    log_e = log_expm1(sigma)
    inv_e = tl.exp(-sigma) / -expm1(-sigma)
    if ABSORBING:
        masked = x_t == mask
        a = tl.where(masked, 1.0, 0.0).to(tl.float64)
        b = a * 0.0
        c = tl.where(masked, inv_e, 0.0)
        k = tl.where(masked, (-log_e - 1.0) * inv_e, 0.0)
    else:
        size = vocab.to(tl.float64)
        # rho = E / (E + V), not 1 - V / (E + V), which loses its digits at small sigma.
        rho = 1.0 / (1.0 + size * inv_e)
        log_rho = -log1p(size * inv_e)
        same = x_t == x_0
        a = 1.0 / size
        b = tl.where(same, rho, 1.0) / size
        c = tl.where(same, 0.0, inv_e)
        k_same = (size - 1.0) / size * rho * (log_rho - 1.0)
        k_moved = ((-log_rho - 1.0) / rho - (size - 2.0)) / size
        k = tl.where(same, k_same, k_moved)
    return a, b, c, k


@triton.jit
def head_coefficients(sigma, x_t, x_0, vocab, mask, ABSORBING: tl.constexpr, SCALED: tl.constexpr):
    """Those of the raw outputs f of a head; SCALED: log scores are f - ln E - ln V."""
    a, b, c, k = entropy_coefficients(sigma, x_t, x_0, vocab, mask, ABSORBING)
    if SCALED:
        size = vocab.to(tl.float64)
        a, k = c / size, c * (tl.log(size) - 1.0)
    return a, b, c, k


class Noise(NamedTuple):
    """The noise level of a position, and how much of it a step removes."""

    sigma: Any
    dsigma: Any


@triton.jit
def removed_noise(noise, METHOD: tl.constexpr):
    """exp(-d) and 1 - exp(-d) of the noise d that an analytic or denoising step removes."""
    if METHOD == DENOISE:
        removed = noise.sigma
    else:
        removed = noise.dsigma
    return tl.maximum(tl.exp(-removed), LEAST), -expm1(-removed)


@triton.jit
def row_shift(largest, ABSORBING: tl.constexpr):
    """What to subtract from a row of log scores whose largest is this, float64."""
    if ABSORBING:
        shift = tl.where(largest == -float("inf"), 0.0, largest)  # 0: a row of no weight
    else:
        shift = tl.maximum(largest, -700.0)  # exp(700) is still a float64
    return shift


@triton.jit
def reverse_coefficients(
    noise, sum_exp, shift, vocab, ABSORBING: tl.constexpr, METHOD: tl.constexpr
):
    """(alpha, beta, gamma) of one position that may move, float64.

    Of log scores from which ``shift`` (``row_shift``) was subtracted: ``sum_exp`` is S * exp(-m).
    Only the ratios of weights count; they are scaled so that none overflows at any noise level.
    """
    dsigma, size = noise.dsigma, vocab.to(tl.float64)
    euler = 1.0 / tl.maximum(dsigma, 1.0)  # factor of the weights
    beta = shift * 0.0
    if ABSORBING:
        if METHOD == DENOISE:
            alpha, gamma = shift * 0.0 + 1.0, shift * 0.0
        else:
            if METHOD == ANALYTIC:
                alpha, log_stay = -expm1(-dsigma), -dsigma
            else:
                alpha, log_stay = dsigma * euler, tl.log(euler)
            stay = tl.exp(tl.minimum(log_stay - shift, 700.0))
            # A row of no weight stays, however much noise is removed.
            gamma = tl.where(sum_exp == 0.0, 1.0, stay - alpha * sum_exp)
    elif METHOD == EULER:
        alpha = dsigma * euler
        gamma = size * euler * tl.exp(-shift) - alpha * sum_exp
    else:
        kept, alpha = removed_noise(noise, METHOD)
        unit = tl.exp(-shift)
        beta = -alpha * (sum_exp + unit) / size
        gamma = (size * kept + alpha) * (unit + beta)
    return alpha, beta, gamma


@triton.jit
def deviation(l, shift, unit):
    """exp(l) - 1, times unit = exp(-shift), float64."""
    return tl.where(l < 1.0, unit * expm1(tl.minimum(l, 1.0)), tl.exp(l - shift) - unit)


@triton.jit
def uniform_excess(kept, lost, vocab, sum_deviations, unit):
    """(1 + beta) * unit of an analytic or denoising step of the uniform graph, from the sum of
    deviations over y != x_t: weight of y = alpha * max(0, deviation + this). Where much noise is
    removed it has all its digits even if the scores are nearly 0 and exp(l) + beta cancels.
    """
    mean = sum_deviations / vocab.to(tl.float64)
    return tl.where(lost > 0.5, kept * (unit + mean) - mean, unit - lost * (unit + mean))
