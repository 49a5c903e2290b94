// Noising of one token: x_t ~ p(. | x_0).
#pragma once

#include "process.h"

namespace sedd {

struct TransitionArguments {
  const int64_t* x_0;   // (B, L)
  const double* sigma;  // (B,)
  const double* u;      // (B, L, 2)
  int64_t* x_t;         // (B, L)
  int64_t batch, length;
  Process process;
};

// The token is replaced when u0 < 1 - exp(-sigma): by the mask, or by floor(u1 * V). It is kept
// where an argument is invalid.
SEDD_HOST_DEVICE inline void noise_token(const TransitionArguments& in, int64_t i) {
  const double u0 = in.u[2 * i], u1 = in.u[2 * i + 1], sigma = in.sigma[i / in.length];
  int64_t token = in.x_0[i];
  if (is_noise(sigma) && is_uniform(u1) && u0 < -::expm1(-sigma)) {
    const int64_t drawn = static_cast<int64_t>(u1 * static_cast<double>(in.process.vocab));
    const int64_t last = in.process.vocab - 1;
    token = in.process.graph == Graph::absorbing ? in.process.mask : drawn < last ? drawn : last;
  }
  in.x_t[i] = token;
}

}  // namespace sedd
