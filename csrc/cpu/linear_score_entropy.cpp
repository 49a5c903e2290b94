// Score entropy of one block of a linear head's output: sums of exp(f) and of f over its states,
// and the gradient a * exp(f_y) - b - c * [y == x_0]. The caller (sedd_fast/backends) computes the
// matrix products: the one that gives the block and those with its gradient.
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

// Rows are processed in groups, each with its own sums of the gradient over the rows. The groups do
// not depend on the number of threads, and their sums are added in order, so neither does the
// result.
constexpr int64_t kMaxGroups = 64;
constexpr int64_t kMinGroup = 16;

int64_t fp32_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

const RowFunctions& row_functions(DType dtype, bool exact) {
  return (exact ? row_table().exact : row_table().fast)[static_cast<int>(dtype)];
}

// A group of rows of a block; `columns` receives the sums of their gradients over the rows.
class BlockRows {
 public:
  BlockRows(const HeadBlock& block, const HeadRows& rows, bool exact, char* columns)
      : block_(block),
        rows_(rows),
        exact_(exact),
        functions_(row_functions(block.dtype, exact)),
        fp32_size_(fp32_size(block.dtype)),
        columns_(columns) {}

  // Returns false where float32 overflowed; never with `exact`.
  bool run(int64_t r) {
    const char* scores = block_.scores + r * block_.stride * item_size(block_.dtype);
    char* gradient = block_.gradient ? block_.gradient + r * block_.stride * grad_size() : nullptr;
    const int64_t x_0 = rows_.x_0 ? inside(rows_.x_0[r]) : -1, x_t = inside(rows_.x_t[r]);
    const double f_x_0 =  // read before the gradient overwrites it
        x_0 >= 0 ? functions_.get(scores, x_0) + functions_.get_fp32(block_.bias, x_0) : 0;
    Sums sums = {0, 0};
    add(sums, r, scores, gradient, 0, x_t >= 0 ? x_t : block_.states);
    if (x_t >= 0) add(sums, r, scores, gradient, x_t + 1, block_.states);
    if (!exact_ && !std::isfinite(sums.exp)) return false;
    rows_.sum_exp[r] += sums.exp;
    if (rows_.sum_log) rows_.sum_log[r] += sums.log;
    if (x_0 >= 0) rows_.f_x_0[r] = f_x_0;
    if (!gradient) return true;
    if (x_t >= 0) functions_.set(gradient, x_t, 0, block_.grad_fp32);
    if (x_0 >= 0 && x_0 != x_t) {
      const double value = rows_.a[r] * std::exp(f_x_0) - rows_.b[r] - rows_.c[r];
      functions_.set(gradient, x_0, value, block_.grad_fp32);
      functions_.add_fp32(columns_, x_0, -rows_.c[r]);
    }
    return true;
  }

 private:
  int64_t grad_size() const { return block_.grad_fp32 ? fp32_size_ : item_size(block_.dtype); }

  // The column of a state in the block, or -1 if it is not in the block.
  int64_t inside(int64_t state) const {
    const int64_t y = state - block_.first;
    return y >= 0 && y < block_.states ? y : -1;
  }

  void add(Sums& sums, int64_t r, const char* scores, char* gradient, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const char* from = scores + begin * item_size(block_.dtype);
    const char* bias = static_cast<const char*>(block_.bias) + begin * fp32_size_;
    Sums some;
    if (!gradient) {
      some = functions_.head_sums(from, bias, end - begin);
    } else {
      const auto function =
          block_.grad_fp32 ? functions_.head_fp32_gradient : functions_.head_gradient;
      some = function(from, bias, gradient + begin * grad_size(), columns_ + begin * fp32_size_,
                      end - begin, rows_.a[r], rows_.b[r]);
    }
    sums.exp += some.exp;
    sums.log += some.log;
  }

  const HeadBlock& block_;
  const HeadRows& rows_;
  bool exact_;
  const RowFunctions& functions_;
  int64_t fp32_size_;
  char* columns_;
};

}  // namespace

bool linear_score_entropy(const HeadBlock& block, const HeadRows& rows, bool exact, int threads) {
  std::atomic<bool> overflow{false};
  const int64_t size = std::max(kMinGroup, (block.rows + kMaxGroups - 1) / kMaxGroups);
  const int64_t groups = (block.rows + size - 1) / size;
  const int64_t bytes = block.gradient ? block.states * fp32_size(block.dtype) : 0;
  std::vector<char> columns(groups * bytes);
  parallel_for(groups, size * block.states, threads, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      BlockRows some(block, rows, exact, columns.data() + group * bytes);
      for (int64_t r = group * size; r < std::min(block.rows, (group + 1) * size); ++r) {
        const bool fine = some.run(r);
        rows.overflowed[r] = !fine;
        if (!fine) overflow = true;
      }
    }
  });
  if (!block.gradient) return overflow;
  for (int64_t group = 0; group < groups; ++group) {
    row_functions(block.dtype, exact)
        .accumulate(block.columns, columns.data() + group * bytes, block.states);
  }
  return overflow;
}

}  // namespace sedd
