// The noising process that every operation receives, and the checks of its arguments.
#pragma once

#include "coefficients.h"
#include "dtype.h"

namespace sedd {

struct Process {
  Graph graph;
  int64_t vocab;

  SEDD_HOST_DEVICE int64_t dim() const { return states(graph, vocab); }
  SEDD_HOST_DEVICE bool is_state(int64_t x) const { return x >= 0 && x < dim(); }
  SEDD_HOST_DEVICE bool is_token(int64_t x) const { return x >= 0 && x < vocab; }
};

SEDD_HOST_DEVICE inline bool is_finite(double x) { return x - x == 0; }
SEDD_HOST_DEVICE inline bool is_noise(double sigma) { return sigma > 0 && is_finite(sigma); }
SEDD_HOST_DEVICE inline bool is_step(double dsigma) { return dsigma >= 0 && is_finite(dsigma); }
SEDD_HOST_DEVICE inline bool is_uniform(double u) { return u >= 0 && u < 1; }

}  // namespace sedd
