// Score entropy of one position and its gradient, by a block of threads: one pass over its row.
#pragma once

#include <type_traits>

#include "process.h"
#include "traverse.h"

namespace sedd {

struct EntropyArguments {
  const void* log_score;
  Layout scores;
  const double* sigma;       // (B,)
  const int64_t* x_t;        // (B, L)
  const int64_t* x_0;        // (B, L)
  const double* row_weight;  // (B, L) or null
  const double* upstream;    // (B, L) or null: factor of each row's gradient
  double scale;              // factor of every row's gradient
  void* loss;                // (B, L) or null; float32, float64 for float64 scores
  void* grad;                // (B, L, dim) or null, of unit stride over states
  Layout gradient;
  Process process;
};

// Two vectors in flight: with more, the kernels that a multiprocessor is to hold so many of spill.
template <class T>
using EntropyRow = Row<T, 2>;

struct NoGradient {};  // as the gradient's type: none is asked for
template <class G>
constexpr bool kHasGradient = !std::is_same<G, NoGradient>::value;

struct EntropyShared {
  double exp_slots[kWarps], log_slots[kWarps];
  EntropyCoefficients coefficients;
};

struct EntropySums {
  double exp, log;  // over y != x_t; log only where `logs`
};

// What a gradient row is made of: a * exp(l_y) - b, times `lift`.
template <class G>
struct GradientRow {
  G* data;
  double a, b;
};

// Stores one, or a vector of neighbours, which is aligned (Row::align_to).
template <class G, class C, int N>
SEDD_HOST_DEVICE void store_gradient(G* to, const C (&g)[N]) {
  if constexpr (N > 1) {
    store_numbers(to, g);
  } else {
    narrow(g[0], to);
  }
}

// One pass in C arithmetic; `vectors` where the row allows it.
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

// One position. Its numbers are read again where they are needed rather than kept: registers are
// what limits the loads in flight.
class EntropyPosition {
 public:
  SEDD_HOST_DEVICE EntropyPosition(const EntropyArguments& in, int64_t row) : in_(in), row_(row) {}

  SEDD_HOST_DEVICE double sigma() const { return in_.sigma[row_ / in_.scores.length]; }
  SEDD_HOST_DEVICE int64_t x_t() const { return in_.x_t[row_]; }
  SEDD_HOST_DEVICE int64_t x_0() const { return in_.x_0[row_]; }
  SEDD_HOST_DEVICE double weight() const { return in_.row_weight ? in_.row_weight[row_] : 1; }
  // Factor of the gradient.
  SEDD_HOST_DEVICE double lift() const {
    return weight() * in_.scale * (in_.upstream ? in_.upstream[row_] : 1);
  }
  SEDD_HOST_DEVICE bool valid() const {
    return is_noise(sigma()) && in_.process.is_state(x_t()) && in_.process.is_token(x_0());
  }
  SEDD_HOST_DEVICE bool touched() const {
    return lift() != 0 && (in_.process.graph == Graph::uniform || x_t() == in_.process.vocab);
  }
  SEDD_HOST_DEVICE EntropyCoefficients coefficients() const {
    return entropy_coefficients(in_.process.graph, in_.process.vocab, sigma(), x_t(), x_0());
  }

  template <class C>
  SEDD_HOST_DEVICE void store_loss(double loss) const {
    if (in_.loss) static_cast<C*>(in_.loss)[row_] = static_cast<C>(loss);
  }
  template <class C>
  SEDD_HOST_DEVICE void finish_loss(const EntropyCoefficients& c, const EntropySums& sums,
                                    double l_x_0) const {
    double loss = c.k + c.a * sums.exp;
    if (c.b > 0) loss -= c.b * sums.log;  // a term that is absent stays so at infinite scores
    if (c.c > 0) loss -= c.c * l_x_0;
    store_loss<C>(weight() * loss);
  }
  // What the pass could not know: the states x_t and x_0.
  template <class G>
  SEDD_HOST_DEVICE void finish_gradient(const EntropyCoefficients& c, G* grad, double l_x_0) const {
    narrow(0.0f, grad + x_t());
    if (x_0() != x_t()) narrow(lift() * (c.a * ::exp(l_x_0) - c.b - c.c), grad + x_0());
  }

 private:
  const EntropyArguments& in_;
  int64_t row_;
};

// The whole position. `G`: the gradient's type; `logs`: the sum of the scores is needed (a uniform
// graph's loss).
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
  // One thread evaluates the formulas, the others begin to read: double is slow on many GPUs.
  if (leader) shared.coefficients = position.coefficients();
  if constexpr (kHasGradient<G>) {
    block.sync();
    gradient.a = position.lift() * shared.coefficients.a;
    gradient.b = position.lift() * shared.coefficients.b;
  }
  EntropyRow<T> scores(in.log_score, in.scores, row);
  if constexpr (kHasGradient<G>) scores.align_to(gradient.data);
  const int x_t = static_cast<int>(position.x_t());
  EntropySums sums = scores.stride == 1
                         ? entropy_pass<C, true, logs>(block, shared, scores, x_t, gradient)
                         : entropy_pass<C, false, logs>(block, shared, scores, x_t, gradient);
  if constexpr (sizeof(C) < sizeof(double)) {
    if (!is_finite(sums.exp)) {  // float32 overflowed: the true value may not
      block.sync();              // all have read the slots
      sums = entropy_pass<double, false, logs>(block, shared, scores, x_t, gradient);
    }
  }
  if (!leader) return;
  const double l_x_0 = scores[static_cast<int>(position.x_0())];
  if constexpr (kHasGradient<G>) {  // the pass's stores are behind a barrier
    position.finish_gradient(shared.coefficients, gradient.data, l_x_0);
  }
  position.finish_loss<C>(shared.coefficients, sums, l_x_0);
}

}  // namespace sedd
