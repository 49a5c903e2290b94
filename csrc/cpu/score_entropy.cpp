// Score entropy of every position and its gradient.
//
//   loss         = a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k, sums over y != x_t
//   gradient_y   = grad_scale * (a * exp(l_y) - b - c * [y == x_0]), 0 at y = x_t
//
// Each position has a row of log scores. The row is not read where loss and gradient are 0: at an
// unmasked token of the absorbing graph, and where the weight is 0.
#include <limits>

#include "common/coefficients.h"
#include "memory.h"
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

// The memory of a gradient row. `fp32`: it is float32, or float64 where the scores are float64;
// else it has the dtype of the scores.
struct GradientRow {
  char* data;
  bool fp32, stream;
  DType dtype;

  int64_t item_size() const {
    if (dtype == DType::float64) return 8;
    return fp32 || dtype == DType::float32 ? 4 : 2;
  }

  void clear(int64_t dim) const {
    row_table().fast[static_cast<int>(dtype)].zero(data, dim * item_size(), stream);
  }
};

// The sums over y != x_t; with a gradient row, a * exp(l_y) - b is stored in the same pass.
Sums pass(const RowFunctions& row, const Scores& scores, const char* l, int64_t x_t,
          const GradientRow* gradient, double a, double b) {
  const int64_t begins[2] = {0, x_t + 1}, ends[2] = {x_t, scores.dim};
  Sums sums{0, 0};
  for (int part = 0; part < 2; ++part) {
    const int64_t begin = begins[part], count = ends[part] - begin;
    if (count <= 0) continue;
    const char* from = l + begin * scores.item_size();
    Sums some;
    if (!gradient) {
      some = row.sums(from, count);
    } else {
      char* to = gradient->data + begin * gradient->item_size();
      const auto function = gradient->fp32 ? row.sums_and_fp32_gradient : row.sums_and_gradient;
      some = function(from, to, count, a, b, gradient->stream);
    }
    sums.exp += some.exp;
    sums.log += some.log;
  }
  return sums;
}

class Position {
 public:
  Position(const EntropyInputs& inputs, int64_t r)
      : inputs_(inputs),
        r_(r),
        sigma_(inputs.sigma[r / inputs.scores.length]),
        x_t_(inputs.x_t[r]),
        x_0_(inputs.x_0[r]),
        weight_(inputs.row_weight.data ? inputs.row_weight[r] : 1) {}

  bool valid() const {
    return is_noise(sigma_) && is_finite(weight_) && inputs_.process.is_state(x_t_) &&
           inputs_.process.is_token(x_0_);
  }

  // Returns the loss; stores the gradient of `upstream * loss` if a gradient row is given.
  double run(std::vector<char>& buffer, double upstream, const GradientRow* gradient) const {
    const Scores& scores = inputs_.scores;
    const auto c = entropy_coefficients(inputs_.process, sigma_, x_t_, x_0_);
    const double grad_scale = weight_ * upstream;
    if (c.a == 0 || weight_ == 0 || grad_scale == 0) {
      if (gradient) gradient->clear(scores.dim);
      return 0;
    }
    const char* l = static_cast<const char*>(scores.row(r_, buffer));
    const int dtype = static_cast<int>(scores.dtype);
    const RowFunctions* row = &row_table().fast[dtype];
    Sums sums = pass(*row, scores, l, x_t_, gradient, grad_scale * c.a, grad_scale * c.b);
    // Where float32 overflowed, the true value may be finite; in a small sum, terms that it takes
    // for 0 may matter.
    if (!std::isfinite(sums.exp) || sums.exp < kSmallSum) {
      row = &row_table().exact[dtype];
      sums = pass(*row, scores, l, x_t_, gradient, grad_scale * c.a, grad_scale * c.b);
    }
    const double l_x_0 = row->get(l, x_0_);
    if (gradient) {
      row->set(gradient->data, x_t_, 0, gradient->fp32);
      if (x_0_ != x_t_) {
        const double at_x_0 = grad_scale * (c.a * std::exp(l_x_0) - c.b - c.c);
        row->set(gradient->data, x_0_, at_x_0, gradient->fp32);
      }
    }
    double loss = c.k + c.a * sums.exp;
    if (loss == HUGE_VAL) return weight_ * loss;  // these terms outgrow the others
    if (c.b > 0) loss -= c.b * sums.log;          // 0 times an infinite score would be NaN
    if (c.c > 0) loss -= c.c * l_x_0;
    return weight_ * loss;
  }

 private:
  const EntropyInputs& inputs_;
  int64_t r_;
  double sigma_;
  int64_t x_t_, x_0_;
  double weight_;
};

// Runs all positions; `upstream(r)` is the factor of the gradient of position r.
template <class Upstream>
bool run(const EntropyInputs& inputs, RealOutput loss, char* grad, bool fp32, int threads,
         const Upstream& upstream) {
  std::atomic<bool> bad{false};
  const Scores& scores = inputs.scores;
  GradientRow first{grad, fp32, false, scores.dtype};
  const int64_t row_bytes = scores.dim * first.item_size();
  first.stream = scores.rows() * row_bytes >= kLarge;
  if (grad && first.stream) ask_for_huge_pages(grad, scores.rows() * row_bytes);
  parallel_for(scores.rows(), scores.dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<char> buffer;
    for (int64_t r = begin; r < end; ++r) {
      GradientRow gradient = first;
      if (grad) gradient.data += r * row_bytes;
      const Position position(inputs, r);
      double value = std::numeric_limits<double>::quiet_NaN();
      if (position.valid()) {
        value = position.run(buffer, upstream(r), grad ? &gradient : nullptr);
      } else {
        bad = true;
        if (grad) gradient.clear(scores.dim);
      }
      if (loss.data) loss.set(r, value);
    }
  });
  return !bad;
}

}  // namespace

bool score_entropy(const EntropyInputs& inputs, RealOutput loss, int threads) {
  return run(inputs, loss, nullptr, false, threads, [](int64_t) { return 1.0; });
}

bool score_entropy_backward(const EntropyInputs& inputs, Reals grad_loss, void* grad, int threads) {
  return run(inputs, {}, static_cast<char*>(grad), false, threads,
             [=](int64_t r) { return grad_loss[r]; });
}

bool score_entropy_with_grad(const EntropyInputs& inputs, double scale, RealOutput loss, void* grad,
                             int threads) {
  const bool fp32 = inputs.scores.dtype == DType::float16;
  return run(inputs, loss, static_cast<char*>(grad), fp32, threads, [=](int64_t) { return scale; });
}

}  // namespace sedd
