// The operations on the CPU. Each returns whether all arguments were in range. If not, the outputs
// of the invalid rows are well defined (NaN loss, zero gradient, token unchanged) and the caller
// raises.
#pragma once

#include <algorithm>

#include "scores.h"

namespace sedd {

// An array of float64 or float32. The caller need not convert small arrays beforehand: with cold
// caches that takes tens of microseconds in torch.
template <class Pointer>
struct RealArray {
  Pointer data;
  bool fp32;

  double operator[](int64_t i) const {
    return fp32 ? static_cast<const float*>(data)[i] : static_cast<const double*>(data)[i];
  }
  void set(int64_t i, double value) const {
    if (fp32) {
      static_cast<float*>(data)[i] = static_cast<float>(value);
    } else {
      static_cast<double*>(data)[i] = value;
    }
  }
};
using Reals = RealArray<const void*>;
using RealOutput = RealArray<void*>;

struct EntropyInputs {
  Scores scores;
  Reals sigma;         // (B,)
  const int64_t* x_t;  // (B, L)
  const int64_t* x_0;  // (B, L)
  Reals row_weight;    // (B, L) or null
  Process process;
};

struct ReverseInputs {
  Scores scores;
  const int64_t* x_t;  // (B, L)
  Reals sigma;         // (B,)
  Reals dsigma;        // (B,)
  Process process;
  Method method;
  bool scale_by_sigma;         // the scores are raw outputs f of l = f - ln E - ln V
  double inverse_temperature;  // exponent of the weights of the tokens; their sum is kept
  double top_p;                // the tokens kept have at least this share of the weight

  bool filtered() const { return inverse_temperature != 1 || top_p < 1; }
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

// u[i], i < count: number i % 2 of block first + i / 2 of the key, in [0, 1).
void fill_uniforms(uint64_t key, uint64_t first, double* u, int64_t count, int threads);

bool sample_transition(const int64_t* x_0, Reals sigma, const double* u, int64_t* x_t,
                       int64_t batch, int64_t length, Process process, int threads);

bool score_entropy(const EntropyInputs& inputs, RealOutput loss, int threads);
bool score_entropy_backward(const EntropyInputs& inputs, Reals grad_loss, void* grad, int threads);
bool score_entropy_with_grad(const EntropyInputs& inputs, double scale, RealOutput loss, void* grad,
                             int threads);

// total: the sums over y != x_t of f(a exp(l_y) + b); log_x_0: l at x_0; both (B, L).
bool row_sums(const RowSumsInputs& inputs, double* total, double* log_x_0, int threads);
// The gradients in the scores, in the dtype of these, and in b, (B, L).
bool row_sums_backward(const RowSumsInputs& inputs, const double* grad_total,
                       const double* grad_log_x_0, void* grad, double* grad_b, int threads);

// One block of a linear head's output: the raw scores f = scores + bias of neighbouring states at
// some positions. fp32 stands for float32, or float64 where the scores are float64.
struct HeadBlock {
  char* scores;  // (rows, states), rows `stride` elements apart
  DType dtype;
  int64_t rows, states, stride;
  int64_t first;     // the state of column 0
  const void* bias;  // (states,), fp32
  char* gradient;    // output in the layout of the scores, may be the same memory; or null
  bool grad_fp32;    // the gradient is fp32, else it has the dtype of the scores
  char* columns;     // (states,), fp32: += the sums of the gradient over the rows
};

// The inputs of the rows of a block, (rows,) each, and the sums that a block adds to. x_0, sum_log
// and f_x_0 may be null, and a, b and c where there is no gradient.
struct HeadRows {
  const int64_t* x_t;  // excluded from the sums; its gradient is zero
  const int64_t* x_0;
  const double* a;  // gradient: a * exp(f_y) - b - c * [y == x_0]
  const double* b;
  const double* c;
  double* sum_exp;      // += sum of exp(f_y) over y != x_t
  double* sum_log;      // += sum of f_y over y != x_t
  double* f_x_0;        // = f at x_0, where x_0 is in the block
  uint8_t* overflowed;  // = 1 where float32 overflowed; such a row adds nothing to the sums
};

// Adds a block to the sums of its rows and computes its gradient if one is given. `exact` computes
// in double. Returns whether a row overflowed; the gradient of that row and all column sums are
// then invalid.
bool linear_score_entropy(const HeadBlock& block, const HeadRows& rows, bool exact, int threads);

// The rows of a block whose softmax is wanted, (rows,) each.
struct CrossEntropyRows {
  const int64_t* target;
  double* shift;     // what is subtracted from f before it is exponentiated
  double* sum_exp;   // += sum of exp(f - shift); null where it is known
  double* f_target;  // = f and exp(f - shift) at the target, where it is in the block
  double* e_target;
};

// Adds a block to the sums of its rows. If block.gradient is given, it becomes exp(f - shift) times
// f's slope in the raw score (1, or that of the softcap), and 0 at the target. `first`: the shift
// of a row becomes the largest f of the block.
void linear_cross_entropy(const HeadBlock& block, const CrossEntropyRows& rows, double softcap,
                          bool first, int threads);

// What a block adds to the statistics of its rows, (rows,) each. Those that may be null are not
// wanted then.
struct DenoiseRows {
  double* largest;  // = the largest f of the block
  double* sum_exp;  // = sum of exp(f - largest), and of (f - largest) exp(f - largest)
  double* weighted;
  double* groups;  // = sums of exp((f - largest) / temperature) over `group` neighbouring states;
  int64_t group;   // rows `stride` numbers apart; or null
  int64_t stride;
  double* top;  // the largest f so far, and the one after it; or null
  double* second;
  int64_t* argmax;  // the first state of f = top
};

// If block.gradient is given, it becomes exp(f - largest).
void linear_denoise(const HeadBlock& block, const DenoiseRows& rows, double softcap,
                    double inverse_temperature, int threads);

// A linear head of which products are formed here rather than by torch: f = weight hidden^T + bias,
// computed in C, float32 or float64.
struct LinearHead {
  const char* weight;  // (states, width) of any dtype, with strides in elements
  DType weight_dtype;
  int64_t states, width, row_stride, column_stride;
  const char* bias;    // (states,), C
  const char* hidden;  // (rows, width), C, contiguous
  int64_t rows;
  DType dtype;  // C
  double softcap;
  int threads;

  int64_t block() const;        // states of a block
  int64_t padded_rows() const;  // numbers of a state in a block
};

// largest[r] = the largest f of the first `states` states.
void head_largest(const LinearHead& head, int64_t states, double* largest);

// A pass over all blocks of a head for a cross entropy. What is null is not wanted.
struct CrossEntropyPass {
  const int64_t* target;  // (rows,) in rising order, and the row of each
  const int64_t* order;
  const double* shift;  // (rows,) what is subtracted from f before it is exponentiated
  double* sum_exp;      // += sum of exp(f - shift)
  double* f_target;     // = f and exp(f - shift) at the target, where its block is formed
  double* e_target;
  // The gradient in f at y is factor * exp(f - shift) times f's slope, and at the target
  // factor * (e_target - missing) times the slope; 0 if `missing` is null.
  const double* factor;
  const double* missing;
  // Exponentials of the states from first_kept on, (states, padded rows): formed by one pass, and
  // read by the next, which has `kept_is_formed`.
  char* kept;
  int64_t first_kept;
  bool kept_is_formed;
  char* of_hidden;     // (rows, width), C: = the sum of gradient / factor times weight
  const char* scaled;  // (rows, width), C: factor * hidden
  char* of_weight;     // (states, width): = or += the sum of gradient / factor times scaled
  DType of_weight_dtype;
  bool add;
  char* of_bias;  // (states,), C: += the sum of gradients
};
void head_cross_entropy(const LinearHead& head, const CrossEntropyPass& pass);

// The statistics of a head's rows, (rows,) each. What is null is not wanted.
struct DenoisePass {
  double inverse_temperature;
  double* largest;  // = the largest f
  double* sum_exp;  // = sum of exp(f - largest), and of (f - largest) exp(f - largest)
  double* weighted;
  double* groups;  // = sums of exp((f - group_shift) / temperature) over the states of a block,
  double* group_shift;  // (blocks, padded rows)
  double* top;          // = the two largest f, and the first state of f = top
  double* second;
  int64_t* argmax;
  char* embedding;  // (rows, width), C: = sum of exp(f - largest) weight
};
void head_denoise(const LinearHead& head, const DenoisePass& pass);

// scores[r * block + i] = hidden[r] times the weight of state group[r] * block + i, without the
// bias; 0 beyond the last state. (rows, block), C.
void head_group_scores(const LinearHead& head, const int64_t* group, char* scores);

bool reverse_step(const ReverseInputs& inputs, const double* u, int64_t* x_s, int64_t* undrawable,
                  int threads);
bool reverse_probs(const ReverseInputs& inputs, void* probs, int64_t* undrawable, int threads);

}  // namespace sedd
