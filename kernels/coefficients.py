"""The closed-form transition ratios of both graphs, for Triton kernels.

    loss                = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k, sums over y != x_t
    weight of y != x_t  = max(0, alpha * exp(l_y) + beta);  weight of x_t = max(0, gamma)

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
def output_scale(sigma, vocab):
    """exp(l) / exp(f) for raw outputs f of log scores l = f - ln E - ln V."""
    return tl.exp(-log_expm1(sigma)) / vocab.to(tl.float64)


@triton.jit
def entropy_coefficients(sigma, x_t, x_0, vocab, ABSORBING: tl.constexpr):
    """(a, b, c, k) of one position, float64; a is 0 exactly where its row need not be read."""
    log_e = log_expm1(sigma)
    inv_e = tl.exp(-log_e)
    if ABSORBING:
        masked = x_t == vocab
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
def head_coefficients(sigma, x_t, x_0, vocab, ABSORBING: tl.constexpr, SCALED: tl.constexpr):
    """Those of the raw outputs f of a head; SCALED: log scores are f - ln E - ln V."""
    a, b, c, k = entropy_coefficients(sigma, x_t, x_0, vocab, ABSORBING)
    if SCALED:
        size = vocab.to(tl.float64)
        a, k = c / size, c * (tl.log(size) - 1.0)
    return a, b, c, k


class Noise(NamedTuple):
    """The noise level of a position, and how much of it a step removes."""

    sigma: Any
    dsigma: Any


@triton.jit
def reverse_coefficients(
    noise, sum_exp, unit, vocab, ABSORBING: tl.constexpr, METHOD: tl.constexpr
):
    """(alpha, beta, gamma) of one position that may move, float64.

    ``sum_exp`` is S * unit, and beta and gamma are scaled by ``unit`` too: exp(-m) where the scores
    of the row are shifted by m, else 1.
    """
    sigma, dsigma = noise
    size = vocab.to(tl.float64)
    if ABSORBING:
        if METHOD == DENOISE:
            alpha, gamma = unit * 0.0 + 1.0, unit * 0.0
        elif METHOD == ANALYTIC:
            alpha = expm1(dsigma)
            gamma = unit - alpha * sum_exp
        else:
            alpha = dsigma
            gamma = unit - alpha * sum_exp
        beta = unit * 0.0
    elif METHOD == EULER:
        alpha = dsigma / size
        beta = unit * 0.0
        gamma = unit - alpha * sum_exp
    else:
        if METHOD == DENOISE:
            removed = sigma
        else:
            removed = dsigma
        e = tl.exp(-removed)
        lost = -expm1(-removed)
        total = sum_exp + unit
        alpha = lost / (size * e)
        beta = -alpha * lost * total / size
        gamma = (unit / e - lost * total / (size * e)) * (e + lost / size)
    return alpha, beta, gamma
