// The operations on the CPU. Each returns whether every value was in range; outputs of a bad row
// are harmless (NaN loss, zero gradient, the token unchanged) and the caller raises.
#pragma once

#include <algorithm>

#include "scores.h"

namespace sedd {

struct EntropyInputs {
  Scores scores;
  const double* sigma;       // (B,)
  const int64_t* x_t;        // (B, L)
  const int64_t* x_0;        // (B, L)
  const double* row_weight;  // (B, L) or null
  Process process;
};

struct ReverseInputs {
  Scores scores;
  const int64_t* x_t;    // (B, L)
  const double* sigma;   // (B,)
  const double* dsigma;  // (B,)
  Process process;
  Method method;
};

bool sample_transition(const int64_t* x_0, const double* sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads);

bool score_entropy(const EntropyInputs& inputs, double* loss, int threads);
bool score_entropy_backward(const EntropyInputs& inputs, const double* grad_loss, void* grad,
                            int threads);
bool score_entropy_with_grad(const EntropyInputs& inputs, double scale, double* loss, void* grad,
                             int threads);

bool reverse_step(const ReverseInputs& inputs, const double* u, int64_t* x_s, int64_t* undrawable,
                  int threads);
bool reverse_probs(const ReverseInputs& inputs, void* probs, int64_t* undrawable, int threads);

}  // namespace sedd
