// The functions on one row of log scores, for one dtype and one instruction set.
//
// A row is contiguous here. The operations (csrc/cpu/score_entropy.cpp and others) have the loops
// over positions and all formulas; a row function only exponentiates, sums and stores.
//
// In names, fp32 stands for float32, or float64 where the row is float64: the dtype of gradients of
// float16 scores, of a head's bias and its gradient, and of probabilities.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace sedd {

constexpr int64_t kChunk = 512;  // states per chunk of the inverse CDF

// A float32 sum below this is formed again in double: terms below 2^-126 = 1e-38 count as 0.
constexpr double kSmallSum = 1e-22;

struct Sums {
  double exp, log;  // sum of exp(l), sum of l
};

// Of d = f - shift: the sums of exp(d), of d exp(d) and of exp(d / temperature).
struct SoftmaxSums {
  double exp, weighted, tempered;
};

// The function f that row_sums adds up, of z = a exp(l) + b, with the codes that Python passes
// (TERMS in sedd_fast/backends/cpp).
enum class Term : int { affine = 0, square = 1, log = 2 };

struct TermSums {
  double moving, slope;  // sum of a exp(l), sum of f'(z)
};

// weight(l) = max(0, exp((l - shift) * inverse_temperature) + beta), and 0 where l < least.
struct Weights {
  double beta = 0, shift = 0, inverse_temperature = 1, least = -__builtin_inf();
};

struct RowFunctions {
  // Sums over n states.
  Sums (*sums)(const void* row, int64_t n);
  // The same, and grad_y = a * exp(l_y) - b, in the row's dtype or in fp32. `stream` stores past
  // the caches, for gradients that are larger than those.
  Sums (*sums_and_gradient)(const void* row, void* grad, int64_t n, double a, double b,
                            bool stream);
  Sums (*sums_and_fp32_gradient)(const void* row, void* grad, int64_t n, double a, double b,
                                 bool stream);
  // The same for raw scores of a linear head: l = row + bias. The gradient may overwrite the row,
  // and is also added to `columns`. bias and columns are fp32.
  Sums (*head_sums)(const void* row, const void* bias, int64_t n);
  Sums (*head_gradient)(const void* row, const void* bias, void* grad, void* columns, int64_t n,
                        double a, double b);
  Sums (*head_fp32_gradient)(const void* row, const void* bias, void* grad, void* columns,
                             int64_t n, double a, double b);
  // Of f, the output of a linear head: row + bias, or softcap * tanh(that / softcap) unless softcap
  // is 0, and -inf where the bias is. The largest; one output.
  double (*head_max)(const void* row, const void* bias, int64_t n, double softcap);
  double (*head_output)(const void* row, const void* bias, int64_t y, double softcap);
  // The sum of exp(f - shift). `out`, which may be the row, becomes exp(f - shift), if `sloped`
  // times f's slope in the raw score; or null.
  double (*head_exp)(const void* row, const void* bias, void* out, int64_t n, double shift,
                     double softcap, bool sloped);
  SoftmaxSums (*head_softmax)(const void* row, const void* bias, int64_t n, double shift,
                              double inverse_temperature, double softcap);
  // The sum of a term over n states; and the gradient of grad_scale * f in the row's dtype,
  // grad_y = grad_scale * f'(z_y) * a * exp(l_y). In float32, the sum of "log" is NaN where a z is
  // not a positive normal number.
  double (*term_sum)(const void* row, int64_t n, Term term, double a, double b);
  TermSums (*term_gradient)(const void* row, void* grad, int64_t n, Term term, double a, double b,
                            double grad_scale, bool stream);
  void (*zero)(void* grad, int64_t bytes, bool stream);
  // Largest score, ignoring the state `skip` and NaN.
  double (*max)(const void* row, int64_t n, int64_t skip);
  // out[i] = sum of the weights in chunk i, without the state `skip`; returns the sum of all
  // chunks.
  double (*chunk_weights)(const void* row, int64_t n, int64_t skip, Weights weights, double* out);
  // First state of [begin, end), at most a chunk, at which the running sum of weights exceeds
  // `share` of their total; the last state with weight if none does; -1 if no state has weight. The
  // total is formed again in double: with that of the float32 lanes, the probabilities of the last
  // states of a chunk would be off by 1e-7.
  int64_t (*walk)(const void* row, int64_t begin, int64_t end, int64_t skip, Weights weights,
                  double share);
  // Single elements: load l_y; store grad_y in the row's dtype or in fp32; load and add to fp32
  // numbers.
  double (*get)(const void* row, int64_t y);
  void (*set)(void* grad, int64_t y, double value, bool fp32);
  double (*get_fp32)(const void* numbers, int64_t y);
  void (*add_fp32)(void* numbers, int64_t y, double value);
  // to[y] += from[y], both fp32.
  void (*accumulate)(void* to, const void* from, int64_t n);
  // probs_y = weight(l_y) * scale, fp32.
  void (*probs)(const void* row, void* probs, int64_t n, Weights weights, double scale);
};

// The row functions for each dtype. `fast` computes in float32 lanes and adds chunks in double;
// float64 rows, and `exact`, compute in double lanes. `exact` is for rows whose sums overflow or
// underflow in float32.
struct RowTable {
  RowFunctions fast[4];
  RowFunctions exact[4];
  // out[2 i], out[2 i + 1] = the uniform numbers of block first + i of Philox, for i < count.
  void (*fill_uniforms)(uint64_t key, uint64_t first, int64_t count, double* out);
};

const RowTable& row_table();    // for the best instruction set of this processor
const char* instruction_set();  // its name, for sedd_fast.info()

}  // namespace sedd
