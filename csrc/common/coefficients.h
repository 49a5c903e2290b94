// The closed-form transition ratios of both graphs, for host and device code.
//
// No other C++ or CUDA file repeats them. sedd_fast/backends/coefficients.py has the same formulas
// for torch, with explanations, and kernels/coefficients.py for Triton. Everything is double: at
// small noise, k and c * l_{x_0} are near 1e6 and cancel.
#pragma once

#include <cmath>

#include "process.h"

namespace sedd {

// ln E = ln(exp(sigma) - 1) without overflow.
SEDD_HOST_DEVICE inline double log_expm1(double sigma) {
  return sigma + std::log(-std::expm1(-sigma));
}

// ln E + ln V: what a network scaled by sigma subtracts from its raw outputs.
SEDD_HOST_DEVICE inline double log_output_scale(double sigma, int64_t vocab) {
  return log_expm1(sigma) + std::log(static_cast<double>(vocab));
}

// loss = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k over y != x_t.
// a is 0 exactly where the row of scores need not be read.
struct EntropyCoefficients {
  double a, b, c, k;
};

SEDD_HOST_DEVICE inline EntropyCoefficients entropy_coefficients(const Process& process,
                                                                 double sigma, int64_t x_t,
                                                                 int64_t x_0) {
  if (!process.is_read(x_t)) return {0, 0, 0, 0};
  const double log_e = log_expm1(sigma);
  const double inv_e = std::exp(-sigma) / -std::expm1(-sigma);  // exact at any sigma
  if (process.graph == Graph::absorbing) return {1, 0, inv_e, (-log_e - 1) * inv_e};
  const double size = static_cast<double>(process.vocab);
  // rho = E / (E + V), not 1 - V / (E + V), which loses its digits at small sigma.
  const double rho = 1 / (1 + size * inv_e);
  const double log_rho = -std::log1p(size * inv_e);
  if (x_t == x_0) return {1 / size, rho / size, 0, (size - 1) / size * rho * (log_rho - 1)};
  return {1 / size, 1 / size, inv_e, ((-log_rho - 1) / rho - (size - 2)) / size};
}

// weight of y = alpha * max(0, exp(l_y) + beta) for y != x_t; weight of x_t = max(0, gamma).
// alpha is 0 exactly where no noise is removed. Only the ratios of weights count; they are scaled
// so that none overflows at any noise level.
struct ReverseCoefficients {
  double alpha, beta, gamma;
};

constexpr double kLeast = 2.2250738585072014e-308;  // the least normal number

// exp(-d) and 1 - exp(-d) of the noise d that an analytic or denoising step removes.
struct Removed {
  double kept, lost;

  SEDD_HOST_DEVICE explicit Removed(double d) : kept(std::exp(-d)), lost(-std::expm1(-d)) {
    if (kept < kLeast) kept = kLeast;
  }
};

// What to subtract from a row of log scores whose largest is this; exp(700) is still a double.
SEDD_HOST_DEVICE inline double row_shift(Graph graph, double largest) {
  if (graph == Graph::uniform && largest < -700) return -700;
  return largest == -HUGE_VAL ? 0 : largest;  // 0: a row of no weight
}

// For log scores from which `shift` (row_shift) was subtracted: sum_exp = S * exp(-shift). The
// weights are homogeneous of degree one in (exp(l), 1).
SEDD_HOST_DEVICE inline ReverseCoefficients reverse_coefficients(const Process& process,
                                                                 Method method, double sigma,
                                                                 double dsigma, double sum_exp,
                                                                 double shift) {
  const double euler = dsigma > 1 ? 1 / dsigma : 1;  // factor of the weights
  if (process.graph == Graph::absorbing) {
    if (method == Method::denoise) return {1, 0, 0};
    const bool analytic = method == Method::analytic;
    const double alpha = analytic ? -std::expm1(-dsigma) : dsigma * euler;
    const double log_stay = (analytic ? -dsigma : std::log(euler)) - shift;
    const double stay = std::exp(log_stay < 700 ? log_stay : 700);
    // A row of no weight stays, however much noise is removed.
    return {alpha, 0, sum_exp == 0 ? 1 : stay - alpha * sum_exp};
  }
  const double size = static_cast<double>(process.vocab), unit = std::exp(-shift);
  if (method == Method::euler) {
    const double alpha = dsigma * euler;
    return {alpha, 0, size * euler * unit - alpha * sum_exp};
  }
  const Removed e(method == Method::denoise ? sigma : dsigma);
  const double beta = -e.lost * (sum_exp + unit) / size;
  return {e.lost, beta, (size * e.kept + e.lost) * (unit + beta)};
}

// exp(l) - 1, times unit = exp(-shift).
SEDD_HOST_DEVICE inline double deviation(double l, double shift, double unit) {
  return l < 1 ? unit * std::expm1(l) : std::exp(l - shift) - unit;
}

// (1 + beta) * unit of an analytic or denoising step of the uniform graph, from the sum of
// deviations over y != x_t: weight of y = alpha * max(0, deviation + this), and of x_t
// (vocab * kept + lost) * this. Where much noise is removed it has all its digits even if the
// scores are nearly 0 and the terms of exp(l_y) + beta cancel.
SEDD_HOST_DEVICE inline double uniform_excess(Removed e, int64_t vocab, double sum_deviations,
                                              double unit) {
  const double mean = sum_deviations / static_cast<double>(vocab);
  return e.lost > 0.5 ? e.kept * (unit + mean) - mean : unit - e.lost * (unit + mean);
}

}  // namespace sedd
