// Score entropy of one position and its gradient, by a block of threads.
//
//   loss         = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k, sums over y != x_t
//   gradient_y   = grad_scale * (a * exp(l_y) - b - c * [y == x_0]), 0 at y = x_t
//
// One pass over the row (traverse.h says how it is divided) forms the sums and stores the gradient
// as if x_0 were any other state; the entries of x_t and x_0 are stored after it. A row whose sum
// overflows in float32 is read a second time in double.
#pragma once

#include <type_traits>

#include "coefficients.h"
#include "traverse.h"

namespace sedd {

struct EntropyArguments {
  const void* log_score;
  Layout scores;
  const double* sigma;       // (B,)
  const int64_t* x_t;        // (B, L)
  const int64_t* x_0;        // (B, L)
  const double* row_weight;  // (B, L) or null
  const double* upstream;    // (B, L) or null: gradient of the objective in each loss
  double scale;              // factor of all gradients
  void* loss;                // (B, L) or null; float32, float64 for float64 scores
  void* grad;                // (B, L, dim) or null, unit stride over states
  Layout gradient;
  Process process;
};

// Two vectors in flight: with more, kernels spill registers at the number of blocks per
// multiprocessor that score_entropy.cu requires.
template <class T>
using EntropyRow = Row<T, 2>;

struct NoGradient {};  // as the gradient's type: no gradient is computed
template <class G>
constexpr bool kHasGradient = !std::is_same<G, NoGradient>::value;

struct EntropyShared {
  double exp_slots[kMaxWarps], log_slots[kMaxWarps];
  EntropyCoefficients coefficients;
};

struct EntropySums {
  double exp, log;  // sums of exp(l_y) and of l_y over y != x_t; log only where `logs`
};

// A gradient row to be stored: data[y] = a * exp(l_y) - b; a and b include `grad_scale`.
template <class G>
struct GradientRow {
  G* data;
  double a, b;
};

// Stores one number, or an aligned vector of neighbouring ones (Row::align_to).
template <class G, class C, int N>
SEDD_HOST_DEVICE void store_gradient(G* to, const C (&g)[N]) {
  if constexpr (N > 1) {
    store_numbers(to, g);
  } else {
    narrow(g[0], to);
  }
}

// One pass over the row, computed in type C; with `vectors`, in loads of several states.
template <class C, bool vectors, bool logs, class T, class G, class Block>
SEDD_HOST_DEVICE EntropySums entropy_pass(Block& block, EntropyShared& shared,
                                          const EntropyRow<T>& row, int x_t,
                                          const GradientRow<G>& gradient) {
  C sum_exp = 0, sum_log = 0;
  const C a = static_cast<C>(gradient.a), b = static_cast<C>(gradient.b);
  const auto visit = [&](int y, auto& l) {
    constexpr int count = sizeof(l) / sizeof(C);
    C e[count];
    replace(l, y, x_t, static_cast<C>(-HUGE_VAL));
    SEDD_UNROLL
    for (int j = 0; j < count; ++j) e[j] = exponential_of<T>(l[j]);
    sum_exp += tree_sum(e);
    if constexpr (logs) {
      replace(l, y, x_t, C(0));
      sum_log += tree_sum(l);
    }
    if constexpr (kHasGradient<G>) {
      SEDD_UNROLL
      for (int j = 0; j < count; ++j) e[j] = a * e[j] - b;
      store_gradient(gradient.data + y, e);
    }
  };
  const auto finish = [](int) {};
  if constexpr (vectors) {
    visit_vectors<true>(block, row, visit, finish);
  } else {
    visit_states<C>(block, row, visit, finish);
  }
  EntropySums sums{block_reduce<Sum>(block, sum_exp, shared.exp_slots), 0};
  if constexpr (logs) sums.log = block_reduce<Sum>(block, sum_log, shared.log_slots);
  return sums;
}

template <class G, class Block>
SEDD_HOST_DEVICE void fill_zero(Block& block, G* grad, int64_t dim) {
  constexpr int width = kWidth<G>;
  const int head = first_aligned(grad, dim);
  const int vectors = static_cast<int>(dim - head) / width;
  if (block.thread() < head) narrow(0.0f, grad + block.thread());
  for (int i = block.thread(); i < vectors; i += block.threads()) {
    store_vector(grad + head + i * width, {{0, 0, 0, 0}});
  }
  const int rest = head + vectors * width + block.thread();
  if (rest < dim) narrow(0.0f, grad + rest);
}

// One position. Its values are read from memory again where they are needed instead of being kept
// in registers, because registers limit how many loads are in flight.
class EntropyPosition {
 public:
  SEDD_HOST_DEVICE EntropyPosition(const EntropyArguments& in, int64_t row) : in_(in), row_(row) {}

  SEDD_HOST_DEVICE double sigma() const { return in_.sigma[row_ / in_.scores.length]; }
  SEDD_HOST_DEVICE int64_t x_t() const { return in_.x_t[row_]; }
  SEDD_HOST_DEVICE int64_t x_0() const { return in_.x_0[row_]; }
  SEDD_HOST_DEVICE double weight() const { return in_.row_weight ? in_.row_weight[row_] : 1; }
  // Factor of this row's gradient.
  SEDD_HOST_DEVICE double grad_scale() const {
    return weight() * in_.scale * (in_.upstream ? in_.upstream[row_] : 1);
  }
  SEDD_HOST_DEVICE bool valid() const {
    return is_noise(sigma()) && is_finite(weight()) && in_.process.is_state(x_t()) &&
           in_.process.is_token(x_0());
  }
  SEDD_HOST_DEVICE bool touched() const {
    return weight() != 0 && grad_scale() != 0 && in_.process.is_read(x_t());
  }
  SEDD_HOST_DEVICE EntropyCoefficients coefficients() const {
    return entropy_coefficients(in_.process, sigma(), x_t(), x_0());
  }

  template <class C>
  SEDD_HOST_DEVICE void store_loss(double loss) const {
    if (in_.loss) static_cast<C*>(in_.loss)[row_] = static_cast<C>(loss);
  }
  template <class C>
  SEDD_HOST_DEVICE void finish_loss(const EntropyCoefficients& c, const EntropySums& sums,
                                    double l_x_0) const {
    double loss = c.k + c.a * sums.exp;
    if (loss < HUGE_VAL) {                  // else these terms outgrow the others
      if (c.b > 0) loss -= c.b * sums.log;  // 0 times an infinite score would be NaN
      if (c.c > 0) loss -= c.c * l_x_0;
    }
    store_loss<C>(weight() * loss);
  }
  // The entries of x_t and x_0, which the pass treats like any other state.
  template <class G>
  SEDD_HOST_DEVICE void finish_gradient(const EntropyCoefficients& c, G* grad, double l_x_0) const {
    narrow(0.0f, grad + x_t());
    if (x_0() != x_t()) narrow(grad_scale() * (c.a * ::exp(l_x_0) - c.b - c.c), grad + x_0());
  }

 private:
  const EntropyArguments& in_;
  int64_t row_;
};

// Loss and gradient of one position. `G`: the gradient's type. `logs`: the sum of l_y is needed
// (the loss of the uniform graph).
template <class T, class G, bool logs, class Block>
SEDD_HOST_DEVICE void entropy_row(Block& block, EntropyShared& shared, const EntropyArguments& in,
                                  int64_t row) {
  using C = Compute<T>;
  const EntropyPosition position(in, row);
  const bool leader = block.thread() == 0, valid = position.valid();
  GradientRow<G> gradient{static_cast<G*>(in.grad), 0, 0};
  if constexpr (kHasGradient<G>) gradient.data += in.gradient.offset(row);
  if (!valid || !position.touched()) {
    if (leader) position.store_loss<C>(valid ? 0 : NAN);
    if constexpr (kHasGradient<G>) fill_zero(block, gradient.data, in.scores.dim);
    return;
  }
  // Only one thread evaluates the formulas, because double arithmetic is slow on many GPUs; the
  // others start to read.
  if (leader) shared.coefficients = position.coefficients();
  if constexpr (kHasGradient<G>) {
    block.sync();
    gradient.a = position.grad_scale() * shared.coefficients.a;
    gradient.b = position.grad_scale() * shared.coefficients.b;
  }
  EntropyRow<T> scores(in.log_score, in.scores, row);
  if constexpr (kHasGradient<G>) scores.align_to(gradient.data);
  const int x_t = static_cast<int>(position.x_t());
  EntropySums sums = scores.stride == 1
                         ? entropy_pass<C, true, logs>(block, shared, scores, x_t, gradient)
                         : entropy_pass<C, false, logs>(block, shared, scores, x_t, gradient);
  if constexpr (sizeof(C) < sizeof(double)) {
    if (!is_finite(sums.exp)) {  // float32 overflowed; the true value may be finite
      block.sync();              // until all threads have read the slots
      sums = entropy_pass<double, false, logs>(block, shared, scores, x_t, gradient);
    }
  }
  if (!leader) return;
  const double l_x_0 = scores[static_cast<int>(position.x_0())];
  if constexpr (kHasGradient<G>) {  // a barrier separates this from the stores of the pass
    position.finish_gradient(shared.coefficients, gradient.data, l_x_0);
  }
  position.finish_loss<C>(shared.coefficients, sums, l_x_0);
}

}  // namespace sedd
