// Noising of clean tokens: x_t ~ p(. | x_0). A token is replaced when u0 < 1 - exp(-sigma): by the
// mask, or by floor(u1 * V).
#include "operations.h"
#include "parallel.h"

namespace sedd {

bool sample_transition(const int64_t* x_0, const double* sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads) {
  std::atomic<bool> bad{false};
  parallel_for(batch, length, threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const double noised = -std::expm1(-sigma[b]);
      bool ok = is_noise(sigma[b]);
      for (int64_t i = b * length; i < (b + 1) * length; ++i) {
        const double u0 = u[2 * i], u1 = u[2 * i + 1];
        ok = ok && process.is_token(x_0[i]) && is_uniform(u0) && is_uniform(u1);
        int64_t token = process.vocab;  // the mask
        if (process.graph == Graph::uniform) {
          token = std::min<int64_t>(static_cast<int64_t>(u1 * process.vocab), process.vocab - 1);
        }
        x_t[i] = u0 < noised ? token : x_0[i];
      }
      if (!ok) bad = true;
    }
  });
  return !bad;
}

}  // namespace sedd
