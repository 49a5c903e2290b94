// What the operations do to one row of log scores, for one element type on one instruction set.
//
// A row is contiguous here. The operations (score_entropy.cpp, reverse_step.cpp) own the loop over
// positions and every formula; a row function only exponentiates, sums and stores.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace sedd {

constexpr int64_t kChunk = 512;  // states a chunk of the inverse CDF

struct Sums {
  double exp, log;  // sum of exp(l), sum of l
};

// What row_sums adds up: f of z = a exp(l) + b, as Python names it (TERMS in
// backends/cpp/module.py).
enum class Term : int { affine = 0, square = 1, log = 2 };

struct TermSums {
  double value, slope;  // sum of f(z), sum of f'(z)
};

// weight(l) = max(0, exp((l - shift) * inverse_temperature) + beta), and 0 for l below `least`. The inverse_temperature
// is one over the temperature.
struct Weights {
  double beta = 0, shift = 0, inverse_temperature = 1, least = -__builtin_inf();
};

struct RowFunctions {
  // Sums over n states.
  Sums (*sums)(const void* row, int64_t n);
  // The same, and grad_y = a * exp(l_y) - b, in the row's dtype or in `wide` (float32; float64 for
  // float64 rows). `stream` stores past the caches: for gradients larger than those.
  Sums (*sums_and_gradient)(const void* row, void* grad, int64_t n, double a, double b,
                            bool stream);
  Sums (*sums_and_wide_gradient)(const void* row, void* grad, int64_t n, double a, double b,
                                 bool stream);
  // A linear head's raw scores: l = row + bias, with bias in `wide`. With a gradient (in the row's
  // dtype or in `wide`; it may go where the scores are) its own is added to `columns`, in `wide`.
  Sums (*head_sums)(const void* row, const void* bias, int64_t n);
  Sums (*head_gradient)(const void* row, const void* bias, void* grad, void* columns, int64_t n,
                        double a, double b);
  Sums (*head_wide_gradient)(const void* row, const void* bias, void* grad, void* columns,
                             int64_t n, double a, double b);
  // Sums of a term over n states, and with a gradient row (in the row's dtype) that of
  // lift * f: grad_y = lift * f'(z_y) * a * exp(l_y).
  TermSums (*term_sums)(const void* row, int64_t n, Term term, double a, double b);
  TermSums (*term_gradient)(const void* row, void* grad, int64_t n, Term term, double a, double b,
                            double lift);
  void (*zero)(void* grad, int64_t bytes, bool stream);
  // Largest score but for the state `skip`, and for NaN.
  double (*max)(const void* row, int64_t n, int64_t skip);
  // out[i] = sum of the weights in chunk i, the state `skip` left out; returns their total.
  double (*chunk_weights)(const void* row, int64_t n, int64_t skip, Weights weights, double* out);
  // First state of [begin, end), at most a chunk, at which the running sum of weights passes
  // `share` of their sum; the last that has weight if none does; -1 if none has. The sum is formed
  // again, in double: against that of the lanes the last states of a chunk would gain or lose 1e-7.
  int64_t (*walk)(const void* row, int64_t begin, int64_t end, int64_t skip, Weights weights,
                  double share);
  // One element: l_y as it is, grad_y rounded into the row's dtype or into `wide`, and a number of
  // `wide`, to read and to add to.
  double (*get)(const void* row, int64_t y);
  void (*set)(void* grad, int64_t y, double value, bool wide);
  double (*get_wide)(const void* numbers, int64_t y);
  void (*add_wide)(void* numbers, int64_t y, double value);
  // to[y] += from[y], both in `wide`.
  void (*accumulate)(void* to, const void* from, int64_t n);
  // probs_y = weight(l_y) * scale, in `wide`.
  void (*probs)(const void* row, void* probs, int64_t n, Weights weights, double scale);
};

// Sums in float32 lanes (chunks combined in double): the ordinary path. A float64 row, and `exact`,
// compute in double lanes: for a row whose scores overflow or vanish in float32.
struct RowTable {
  RowFunctions fast[4];
  RowFunctions exact[4];
};

const RowTable& row_table();    // the best that this processor runs
const char* instruction_set();  // its name, for sedd_fast.info()

}  // namespace sedd
