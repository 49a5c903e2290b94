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
  bool scale_by_sigma;  // the scores are raw outputs f, of l = f - ln E - ln V
  double inverse_temperature;      // one over the temperature of the shares of the tokens; their sum stays
  double top_p;         // what the shares of the tokens that remain reach

  bool shaped() const { return inverse_temperature != 1 || top_p < 1; }
};

struct RowSumsInputs {
  Scores scores;
  const int64_t* x_t;  // (B, L)
  const int64_t* x_0;  // (B, L)
  const double* a;     // (B, L); a row with a = 0 is not read
  const double* b;     // (B, L)
  Term term;
  Process process;
};

bool sample_transition(const int64_t* x_0, const double* sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads);

bool score_entropy(const EntropyInputs& inputs, double* loss, int threads);
bool score_entropy_backward(const EntropyInputs& inputs, const double* grad_loss, void* grad,
                            int threads);
bool score_entropy_with_grad(const EntropyInputs& inputs, double scale, double* loss, void* grad,
                             int threads);

// Sums over y != x_t of f(a exp(l_y) + b), and l at x_0; (B, L).
bool row_sums(const RowSumsInputs& inputs, double* total, double* log_x_0, int threads);
// Their gradients: in the scores, in the dtype of these, and in b, (B, L).
bool row_sums_backward(const RowSumsInputs& inputs, const double* grad_total,
                       const double* grad_log_x_0, void* grad, double* grad_b, int threads);

// One block of a linear head's output: the raw scores f = scores + bias of neighbouring states at
// some positions. "Wide" is float32, or float64 for float64 scores.
struct HeadBlock {
  char* scores;  // (rows, states), rows `stride` elements apart
  DType dtype;
  int64_t rows, states, stride;
  int64_t first;     // the state of column 0
  const void* bias;  // (states,), wide
  char* gradient;  // takes the gradient, in the layout of the scores; it may be the scores. Or null
  bool wide;       // the gradient's dtype is wide
  char* columns;   // (states,), wide: += the sums of the gradient over the rows
};

// What a block needs to know of its rows, and what it adds to them. x_0, sum_log and f_x_0 may be
// null, and a, b and c where there is no gradient.
struct HeadRows {
  const int64_t* x_t;  // never part of a sum; of zero gradient
  const int64_t* x_0;
  const double* a;  // gradient: a * exp(f_y) - b - c * [y == x_0]
  const double* b;
  const double* c;
  double* sum_exp;      // += sum of exp(f_y) over y != x_t
  double* sum_log;      // += sum of f_y over y != x_t
  double* f_x_0;        // f at x_0, where it is in the block
  uint8_t* overflowed;  // set where float32 overflowed; such a row has added nothing
};

// Adds the block to the sums of its rows and, with a gradient, forms that. `exact` computes in
// double. Returns whether a row overflowed: its gradient and all column sums are of no use then.
bool linear_score_entropy(const HeadBlock& block, const HeadRows& rows, bool exact, int threads);

bool reverse_step(const ReverseInputs& inputs, const double* u, int64_t* x_s, int64_t* undrawable,
                  int threads);
bool reverse_probs(const ReverseInputs& inputs, void* probs, int64_t* undrawable, int threads);

}  // namespace sedd
