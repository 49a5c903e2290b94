// Sums over y != x_t of f(z_y), z_y = a * exp(l_y) + b, with f given by name (Term), and the
// gradient
//
//   grad_y = grad_scale * f'(z_y) * a * exp(l_y) + grad_x_0 * [y == x_0], 0 at y = x_t
//
// A row with a = 0 is never read; its sums and its gradient are 0.
#include <limits>

#include "memory.h"
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

class TermPosition {
 public:
  TermPosition(const RowSumsInputs& inputs, int64_t r)
      : inputs_(inputs), r_(r), x_t_(inputs.x_t[r]), x_0_(inputs.x_0[r]) {}

  bool valid() const { return inputs_.process.is_state(x_t_) && inputs_.process.is_token(x_0_); }
  bool touched() const { return inputs_.a[r_] != 0; }

  void sums(std::vector<char>& buffer, double* total, double* log_x_0) const {
    const char* l = row(buffer);
    TermSums sums = pass(table().fast, l, nullptr, 0);
    if (!in_range(sums)) sums = pass(table().exact, l, nullptr, 0);
    *total = sums.value;
    *log_x_0 = x_0_ == x_t_ ? 0 : functions(table().exact).get(l, x_0_);
  }

  // Stores the gradient row and returns the gradient in b.
  double gradient(std::vector<char>& buffer, double grad_scale, double grad_x_0, char* grad) const {
    const char* l = row(buffer);
    TermSums sums{0, 0};
    if (grad_scale == 0) {
      std::memset(grad, 0, inputs_.scores.dim * inputs_.scores.item_size());
    } else {
      sums = pass(table().fast, l, grad, grad_scale);
      if (!in_range(sums)) sums = pass(table().exact, l, grad, grad_scale);
    }
    const RowFunctions& of = functions(table().exact);
    of.set(grad, x_t_, 0, false);
    if (x_0_ != x_t_) of.set(grad, x_0_, at(of.get(l, x_0_), grad_scale) + grad_x_0, false);
    return grad_scale * sums.slope;
  }

 private:
  static const RowTable& table() { return row_table(); }
  // Whether float32 neither overflowed nor underflowed.
  static bool in_range(const TermSums& s) {
    return std::isfinite(s.value) && std::isfinite(s.slope) && std::fabs(s.value) > 1e-30;
  }

  const RowFunctions& functions(const RowFunctions* of) const {
    return of[static_cast<int>(inputs_.scores.dtype)];
  }
  const char* row(std::vector<char>& buffer) const {
    return static_cast<const char*>(inputs_.scores.row(r_, buffer));
  }

  TermSums pass(const RowFunctions* of, const char* l, char* grad, double grad_scale) const {
    const Scores& scores = inputs_.scores;
    const double a = inputs_.a[r_], b = inputs_.b[r_];
    const int64_t begins[2] = {0, x_t_ + 1}, ends[2] = {x_t_, scores.dim};
    TermSums sums{0, 0};
    for (int part = 0; part < 2; ++part) {
      const int64_t count = ends[part] - begins[part], skipped = begins[part] * scores.item_size();
      if (count <= 0) continue;
      const TermSums some = grad ? functions(of).term_gradient(l + skipped, grad + skipped, count,
                                                               inputs_.term, a, b, grad_scale)
                                 : functions(of).term_sums(l + skipped, count, inputs_.term, a, b);
      sums.value += some.value;
      sums.slope += some.slope;
    }
    return sums;
  }

  // grad_scale * f'(z) * a * exp(l), the gradient in one score.
  double at(double l, double grad_scale) const {
    if (grad_scale == 0) return 0;
    const double moving = inputs_.a[r_] * std::exp(l), z = moving + inputs_.b[r_];
    const double slope = inputs_.term == Term::affine ? 1
                         : inputs_.term == Term::log  ? 1 / z
                                                      : 2 * z;
    return grad_scale * slope * moving;
  }

  const RowSumsInputs& inputs_;
  int64_t r_;
  int64_t x_t_, x_0_;
};

// Calls `touched(position, r, buffer)` for every position with a != 0, `rest(r, valid)` for the
// others.
template <class Touched, class Rest>
bool run(const RowSumsInputs& inputs, int threads, const Touched& touched, const Rest& rest) {
  std::atomic<bool> bad{false};
  parallel_for(inputs.scores.rows(), inputs.scores.dim, threads, [&](int64_t begin, int64_t end) {
    std::vector<char> buffer;
    for (int64_t r = begin; r < end; ++r) {
      const TermPosition position(inputs, r);
      const bool valid = position.valid();
      if (!valid) bad = true;
      if (valid && position.touched()) {
        touched(position, r, buffer);
      } else {
        rest(r, valid);
      }
    }
  });
  return !bad;
}

}  // namespace

bool row_sums(const RowSumsInputs& inputs, double* total, double* log_x_0, int threads) {
  return run(
      inputs, threads,
      [&](const TermPosition& position, int64_t r, std::vector<char>& buffer) {
        position.sums(buffer, total + r, log_x_0 + r);
      },
      [&](int64_t r, bool valid) {
        total[r] = log_x_0[r] = valid ? 0 : std::numeric_limits<double>::quiet_NaN();
      });
}

bool row_sums_backward(const RowSumsInputs& inputs, const double* grad_total,
                       const double* grad_log_x_0, void* grad, double* grad_b, int threads) {
  const int64_t bytes = inputs.scores.dim * inputs.scores.item_size();
  char* first = static_cast<char*>(grad);
  const int64_t whole = bytes * inputs.scores.rows();
  if (whole >= kLarge) ask_for_huge_pages(grad, whole);
  return run(
      inputs, threads,
      [&](const TermPosition& position, int64_t r, std::vector<char>& buffer) {
        grad_b[r] = position.gradient(buffer, grad_total[r], grad_log_x_0[r], first + r * bytes);
      },
      [&](int64_t r, bool) {
        std::memset(first + r * bytes, 0, bytes);
        grad_b[r] = 0;
      });
}

}  // namespace sedd
