// The closed-form transition ratios of both graphs, for host and device code.
//
// No other C++ or CUDA file repeats them. sedd_fast/backends/coefficients.py has the same formulas
// for torch, with explanations, and kernels/coefficients.py for Triton. Everything is double: at
// small noise, k and c * l_{x_0} are near 1e6 and cancel.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SEDD_HOST_DEVICE __host__ __device__
#else
#define SEDD_HOST_DEVICE
#endif

namespace sedd {

enum class Graph : int { absorbing = 0, uniform = 1 };
enum class Method : int { analytic = 0, euler = 1, denoise = 2 };

SEDD_HOST_DEVICE inline int64_t states(Graph graph, int64_t vocab) {
  return vocab + (graph == Graph::absorbing ? 1 : 0);
}

// ln E = ln(exp(sigma) - 1) without overflow.
SEDD_HOST_DEVICE inline double log_expm1(double sigma) {
  return sigma + std::log(-std::expm1(-sigma));
}

// For a network whose raw outputs f give log scores l = f - ln E - ln V: exp(l) = exp(f) * this.
SEDD_HOST_DEVICE inline double output_scale(double sigma, int64_t vocab) {
  return std::exp(-log_expm1(sigma)) / static_cast<double>(vocab);
}

// loss = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k over y != x_t.
// a is 0 exactly where the row of scores need not be read.
struct EntropyCoefficients {
  double a, b, c, k;
};

SEDD_HOST_DEVICE inline EntropyCoefficients entropy_coefficients(Graph graph, int64_t vocab,
                                                                 double sigma, int64_t x_t,
                                                                 int64_t x_0) {
  if (graph == Graph::absorbing && x_t != vocab) return {0, 0, 0, 0};
  const double log_e = log_expm1(sigma);
  const double inv_e = std::exp(-log_e);
  if (graph == Graph::absorbing) return {1, 0, inv_e, (-log_e - 1) * inv_e};
  const double size = static_cast<double>(vocab);
  // rho = E / (E + V), not 1 - V / (E + V), which loses its digits at small sigma.
  const double rho = 1 / (1 + size * inv_e);
  const double log_rho = -std::log1p(size * inv_e);
  if (x_t == x_0) return {1 / size, rho / size, 0, (size - 1) / size * rho * (log_rho - 1)};
  return {1 / size, 1 / size, inv_e, ((-log_rho - 1) / rho - (size - 2)) / size};
}

// weight of y = max(0, alpha * exp(l_y) + beta) for y != x_t; weight of x_t = max(0, gamma).
// alpha is 0 exactly where the token cannot move.
struct ReverseCoefficients {
  double alpha, beta, gamma;
};

// sum_exp = S * unit. The scores of a row may be shifted by their maximum m, with unit = exp(-m),
// because the weights are homogeneous of degree one in (exp(l), 1).
SEDD_HOST_DEVICE inline ReverseCoefficients reverse_coefficients(Graph graph, Method method,
                                                                 int64_t vocab, double sigma,
                                                                 double dsigma, double sum_exp,
                                                                 double unit) {
  if (graph == Graph::absorbing) {
    if (method == Method::denoise) return {1, 0, 0};
    const double alpha = method == Method::analytic ? std::expm1(dsigma) : dsigma;
    return {alpha, 0, unit - alpha * sum_exp};
  }
  const double size = static_cast<double>(vocab);
  if (method == Method::euler) {
    const double alpha = dsigma / size;
    return {alpha, 0, unit - alpha * sum_exp};
  }
  const double removed = method == Method::denoise ? sigma : dsigma;
  const double e = std::exp(-removed);
  const double lost = -std::expm1(-removed);  // 1 - e
  const double total = sum_exp + unit;        // T = S + 1
  const double alpha = lost / (size * e);
  return {alpha, -alpha * lost * total / size,
          (unit / e - lost * total / (size * e)) * (e + lost / size)};
}

}  // namespace sedd
