// The noising process that every operation receives, and the checks of its arguments.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SEDD_HOST_DEVICE __host__ __device__
#else
#define SEDD_HOST_DEVICE
#endif

namespace sedd {

enum class Graph : int { absorbing = 0, uniform = 1 };
enum class Method : int { analytic = 0, euler = 1, denoise = 2 };

struct Process {
  Graph graph;
  int64_t vocab;  // the number of real tokens
  int64_t mask;   // the state that is no real token, or -1

  SEDD_HOST_DEVICE int64_t dim() const { return vocab + (graph == Graph::absorbing ? 1 : 0); }
  SEDD_HOST_DEVICE bool is_state(int64_t x) const { return x >= 0 && x < dim(); }
  SEDD_HOST_DEVICE bool is_token(int64_t x) const { return is_state(x) && x != mask; }
  // Whether a position of that state has a loss, or may move.
  SEDD_HOST_DEVICE bool is_read(int64_t x_t) const {
    return graph == Graph::uniform || x_t == mask;
  }
};

SEDD_HOST_DEVICE inline bool is_finite(double x) { return x - x == 0; }
SEDD_HOST_DEVICE inline bool is_noise(double sigma) { return sigma > 0 && is_finite(sigma); }
SEDD_HOST_DEVICE inline bool is_step(double dsigma) { return dsigma >= 0 && is_finite(dsigma); }
SEDD_HOST_DEVICE inline bool is_uniform(double u) { return u >= 0 && u < 1; }

}  // namespace sedd
