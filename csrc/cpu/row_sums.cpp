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

  bool valid() const {
    return inputs_.process.is_state(x_t_) && inputs_.process.is_token(x_0_) &&
           is_finite(inputs_.a[r_]);
  }
  bool touched() const { return inputs_.a[r_] != 0; }

  void sums(std::vector<char>& buffer, double* total, double* log_x_0) const {
    const char* l = row(buffer);
    *total = sum(table().fast, l);
    if (!in_range(*total)) *total = sum(table().exact, l);
    *log_x_0 = x_0_ == x_t_ ? 0 : functions(table().exact).get(l, x_0_);
  }

  // Stores the gradient row and returns the gradient in b.
  double gradient(std::vector<char>& buffer, double grad_scale, double grad_x_0, char* grad,
                  bool stream) const {
    const char* l = row(buffer);
    TermSums sums{0, 0};
    if (grad_scale == 0) {
      clear(grad, stream);
    } else {
      sums = pass(table().fast, l, grad, grad_scale, stream);
      if (!in_range(sums.moving) || !std::isfinite(sums.slope)) {
        sums = pass(table().exact, l, grad, grad_scale, stream);
      }
    }
    const RowFunctions& of = functions(table().exact);
    of.set(grad, x_t_, 0, false);
    if (x_0_ != x_t_) of.set(grad, x_0_, at(of.get(l, x_0_), grad_scale) + grad_x_0, false);
    return grad_scale * sums.slope;
  }

  void clear(char* grad, bool stream) const {
    functions(table().fast).zero(grad, inputs_.scores.dim * inputs_.scores.item_size(), stream);
  }

 private:
  static const RowTable& table() { return row_table(); }
  // Whether float32 neither overflowed nor nearly underflowed.
  static bool in_range(double sum) { return std::isfinite(sum) && std::fabs(sum) > kSmallSum; }

  const RowFunctions& functions(const RowFunctions* of) const {
    return of[static_cast<int>(inputs_.scores.dtype)];
  }
  const char* row(std::vector<char>& buffer) const {
    return static_cast<const char*>(inputs_.scores.row(r_, buffer));
  }

  // Calls part(begin, count) for the states before and after x_t.
  template <class Part>
  void parts(const Part& part) const {
    if (x_t_ > 0) part(0, x_t_);
    if (const int64_t rest = inputs_.scores.dim - x_t_ - 1) part(x_t_ + 1, rest);
  }

  double sum(const RowFunctions* of, const char* l) const {
    double total = 0;
    parts([&](int64_t begin, int64_t count) {
      total += functions(of).term_sum(l + begin * inputs_.scores.item_size(), count, inputs_.term,
                                      inputs_.a[r_], inputs_.b[r_]);
    });
    return total;
  }

  TermSums pass(const RowFunctions* of, const char* l, char* grad, double grad_scale,
                bool stream) const {
    TermSums sums{0, 0};
    parts([&](int64_t begin, int64_t count) {
      const int64_t skipped = begin * inputs_.scores.item_size();
      const TermSums some =
          functions(of).term_gradient(l + skipped, grad + skipped, count, inputs_.term,
                                      inputs_.a[r_], inputs_.b[r_], grad_scale, stream);
      sums.moving += some.moving;
      sums.slope += some.slope;
    });
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

// Calls `touched(position, r, buffer)` for every position with a != 0, `rest(position, r, valid)`
// for the others.
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
        rest(position, r, valid);
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
      [&](const TermPosition&, int64_t r, bool valid) {
        total[r] = log_x_0[r] = valid ? 0 : std::numeric_limits<double>::quiet_NaN();
      });
}

bool row_sums_backward(const RowSumsInputs& inputs, const double* grad_total,
                       const double* grad_log_x_0, void* grad, double* grad_b, int threads) {
  const int64_t bytes = inputs.scores.dim * inputs.scores.item_size();
  char* first = static_cast<char*>(grad);
  const int64_t whole = bytes * inputs.scores.rows();
  const bool stream = whole >= kLarge;
  if (stream) ask_for_huge_pages(grad, whole);
  return run(
      inputs, threads,
      [&](const TermPosition& position, int64_t r, std::vector<char>& buffer) {
        grad_b[r] =
            position.gradient(buffer, grad_total[r], grad_log_x_0[r], first + r * bytes, stream);
      },
      [&](const TermPosition& position, int64_t r, bool) {
        position.clear(first + r * bytes, stream);
        grad_b[r] = 0;
      });
}

}  // namespace sedd
