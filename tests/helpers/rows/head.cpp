// The functions on blocks of a head's output: products of packed operands, and what is done to a
// block, against double formulas.
#include <algorithm>

#include "cpu/simd/head.h"
#include "tested.h"

namespace {

using namespace sedd;

Random uniform;

struct Size {
  int64_t states, width, panels;
};
// Below, at and beyond the rows of a tile, the columns of a panel, and the depth of a sum.
constexpr Size kSizes[] = {{1, 1, 1},   {2, 7, 1},    {12, 32, 2}, {13, 33, 3}, {60, 70, 1},
                           {120, 9, 4}, {24, 300, 2}, {7, 513, 1}, {3, 0, 1}};

class HeadBlocks {
 public:
  HeadBlocks(const Format& format, Size size)
      : format_(format),
        of_(head_functions(type(format))),
        size_(size),
        rows_(size.panels * of_.panel),
        little_(format.bytes == 8 ? 1e-14 : 1e-6) {}

  void run() {
    for (const Format& weight : kFormats) products(weight);
    for (const double softcap : {0.0, 3.0}) {
      make_block(softcap);
      largest_and_outputs();
      for (const bool sloped : {false, true}) exponentials(sloped);
      for (const double inverse : {1.0, 0.5, 3.0}) statistics(inverse);
    }
    rest();
  }

 private:
  static DType type(const Format& format) { return static_cast<DType>(&format - kFormats); }
  void describe(const char* what) {
    checks.describe("%s, %s, %s, %lld states, width %lld, %lld rows", instruction_set(),
                    format_.name, what, static_cast<long long>(size_.states),
                    static_cast<long long>(size_.width), static_cast<long long>(rows_));
  }
  Buffer random(const Format& format, int64_t n, double low, double high) const {
    Buffer made(format, n, 0);
    for (int64_t i = 0; i < n; ++i) made.set(i, uniform(low, high));
    return made;
  }
  int64_t padded() const { return (size_.width + of_.panel - 1) / of_.panel * of_.panel; }

  // scores = weight hidden^T; of rows; of states, with and without what was there before.
  void products(const Format& of_weight) {
    const int64_t n = size_.states, h = size_.width;
    for (const int64_t step : {int64_t{1}, int64_t{2}}) {
      const int64_t stride = h * step + 3;
      Buffer weight = random(of_weight, n * stride, -1, 1);
      Buffer hidden = random(format_, rows_ * h, -1, 1);
      Buffer packed(format_, n * padded(), 0), columns(format_, rows_ * h, 0);
      Buffer block(format_, n * rows_, 0);
      of_.pack(weight.data(), type(of_weight), stride, step, n, h, packed.data());
      of_.pack_transposed(hidden.data(), rows_, h, columns.data());
      of_.scores(packed.data(), columns.data(), n, h, rows_, block.data());
      describe("scores");
      for (int64_t y = 0; y < n; ++y) {
        for (int64_t r = 0; r < rows_; r += 3) {
          double sum = 0;
          for (int64_t k = 0; k < h; ++k) sum += weight[y * stride + k * step] * hidden[r * h + k];
          checks.near("score", block[y * rows_ + r], sum, little_ * h, y);
          if (r > 0) continue;
          const double dot =
              of_.dot(static_cast<char*>(weight.data()) + y * stride * of_weight.bytes,
                      type(of_weight), step, hidden.data(), h);
          checks.near("dot", dot, sum, little_ * h, y);
        }
      }
      if (step > 1 || &of_weight != &kFormats[0]) continue;
      add_to_rows(block, packed, weight, stride);
      of_states(block, hidden);
    }
  }

  void add_to_rows(const Buffer& block, Buffer& packed, const Buffer& weight, int64_t stride) {
    Buffer input = block, total = random(format_, rows_ * padded(), -1, 1);
    const Buffer before = total;
    of_.add_to_rows(input.data(), packed.data(), size_.states, padded(), rows_, total.data());
    describe("add to rows");
    for (int64_t r = 0; r < rows_; r += 3) {
      for (int64_t k = 0; k < size_.width; k += 5) {
        double sum = before[r * padded() + k], terms = 1;
        for (int64_t y = 0; y < size_.states; ++y) {
          const double term = block[y * rows_ + r] * weight[y * stride + k];
          sum += term, terms += std::fabs(term);
        }
        checks.near("total", total[r * padded() + k], sum, little_ * terms, r);
      }
    }
    checks.that("memory around the rows", total.guards_are_intact());
  }

  void of_states(const Buffer& block, Buffer& hidden) {
    const int64_t n = size_.states, h = size_.width;
    Buffer input = block, packed(format_, rows_ * padded(), 0);
    of_.pack(hidden.data(), type(format_), h, 1, rows_, h, packed.data());
    for (const bool add : {false, true}) {
      Buffer out = random(format_, n * h, -1, 1);
      const Buffer before = out;
      of_.of_states(input.data(), packed.data(), n, h, rows_, out.data(), add);
      describe(add ? "of states, added" : "of states");
      for (int64_t y = 0; y < n; y += 2) {
        for (int64_t k = 0; k < h; k += 5) {
          double sum = add ? before[y * h + k] : 0, terms = 1;
          for (int64_t r = 0; r < rows_; ++r) {
            const double term = block[y * rows_ + r] * hidden[r * h + k];
            sum += term, terms += std::fabs(term);
          }
          checks.near("gradient", out[y * h + k], sum, little_ * terms, y);
        }
      }
      checks.that("memory around the states", out.guards_are_intact());
    }
  }

  // A block of scores with a bias, in which some states have no probability, and its f.
  void make_block(double softcap) {
    const int64_t n = size_.states;
    softcap_ = softcap;
    scores_ = random(format_, n * rows_, -4, 4);
    bias_ = random(format_, n, -2, 2);
    for (int64_t y = 3; y < n; y += 7) bias_.set(y, -kInfinity);
    f_.assign(n * rows_, 0), slope_.assign(n * rows_, 1);
    for (int64_t i = 0; i < n * rows_; ++i) {
      const double raw = scores_[i] + bias_[i / rows_], t = std::tanh(raw / softcap);
      f_[i] = softcap == 0 || raw == -kInfinity ? raw : softcap * t;
      if (softcap != 0 && raw != -kInfinity) slope_[i] = 1 - t * t;
    }
  }
  BlockShape shape() { return {size_.states, rows_, bias_.data(), softcap_}; }

  void largest_and_outputs() {
    describe("largest");
    std::vector<double> most(rows_, -kInfinity);
    of_.largest(scores_.data(), shape(), most.data());
    for (int64_t r = 0; r < rows_; ++r) {
      double expected = -kInfinity;
      for (int64_t y = 0; y < size_.states; ++y) expected = std::max(expected, f_[y * rows_ + r]);
      checks.near("largest", most[r], expected, 20 * little_, r);
      const double got = of_.output(scores_.data(), shape(), size_.states - 1, r);
      checks.near("f", got, f_[(size_.states - 1) * rows_ + r], 20 * little_, r);
    }
  }

  void exponentials(bool sloped) {
    describe(sloped ? "exponentials, sloped" : "exponentials");
    Buffer block = scores_;
    std::vector<double> shift(rows_), sums(rows_, 1.0);
    for (double& x : shift) x = uniform(-2, 2);
    of_.exponentials(block.data(), shape(), shift.data(), sloped, sums.data());
    for (int64_t r = 0; r < rows_; ++r) {
      double sum = 1;
      for (int64_t y = 0; y < size_.states; ++y) {
        const int64_t i = y * rows_ + r;
        const double e = std::exp(f_[i] - shift[r]);
        sum += e;
        checks.near("e", block[i], sloped ? e * slope_[i] : e, 40 * little_ * e, y);
      }
      checks.near("sum", sums[r], sum, 40 * little_ * sum, r);
    }
    checks.that("memory around the block", block.guards_are_intact());
  }

  // Two blocks, the second of which is the first one, 1 higher.
  void statistics(double inverse) {
    describe("statistics");
    const int64_t n = size_.states;
    std::vector<double> made[6], groups(rows_);
    for (auto& of_rows : made) of_rows.assign(rows_, 0.0);
    for (const int i : {0, 3, 4}) made[i].assign(rows_, -kInfinity);
    std::vector<int64_t> argmax(rows_, -1);
    const RowStatistics rows = {made[0].data(), made[1].data(), made[2].data(), made[3].data(),
                                made[4].data(), argmax.data(),  made[5].data()};
    Buffer bias = bias_, block = scores_;
    of_.statistics(block.data(), shape(), 0, inverse, rows, groups.data());
    for (int64_t r = 0; r < rows_; ++r) check_row(r, 0, inverse, made, argmax, groups, block);
    if (softcap_ != 0) return;
    for (int64_t y = 0; y < n; ++y) bias_.set(y, bias_[y] + 1);
    for (int64_t i = 0; i < n * rows_; ++i) f_[i] = scores_[i] + bias_[i / rows_];
    block = scores_;
    of_.statistics(block.data(), shape(), n, inverse, rows, groups.data());
    for (int64_t r = 0; r < rows_; ++r) check_row(r, n, inverse, made, argmax, groups, block);
    bias_ = bias;
    for (int64_t i = 0; i < n * rows_; ++i) f_[i] = scores_[i] + bias_[i / rows_];
  }

  void check_row(int64_t r, int64_t first, double inverse, const std::vector<double>* made,
                 const std::vector<int64_t>& argmax, const std::vector<double>& groups,
                 const Buffer& block) {
    double top = -kInfinity, second = -kInfinity;
    for (int64_t y = 0; y < size_.states; ++y) {
      const double f = f_[y * rows_ + r];
      second = std::max(second, std::min(f, top)), top = std::max(top, f);
    }
    if (first > 0) second = std::max(second, top - 1);
    double sum = 0, weighted = 0, tempered = 0;
    for (int64_t y = 0; y < size_.states; ++y) {
      const double d = f_[y * rows_ + r] - top, e = std::exp(d);
      checks.near("e", block[y * rows_ + r], e, 60 * little_ * e, y);
      tempered += std::exp(d * inverse);
      sum += e, weighted += e > 0 ? d * e : 0;
      if (first == 0 || e == 0) continue;
      sum += std::exp(d - 1), weighted += (d - 1) * std::exp(d - 1);
    }
    const double allowed = 60 * little_ * sum;
    checks.near("shift", made[0][r], top, 20 * little_, r);
    checks.near("sum", made[1][r], sum, allowed, r);
    checks.near("weighted", made[2][r], weighted, 10 * allowed, r);
    checks.near("top", made[3][r], top, 20 * little_, r);
    checks.near("second", made[4][r], second, 20 * little_, r);
    const int64_t at = argmax[r] - first;
    checks.that("argmax", at >= 0 && at < size_.states);
    if (at >= 0 && at < size_.states) checks.near("f there", f_[at * rows_ + r], top, 20 * little_);
    checks.near("tempered", groups[r], tempered, 200 * little_ * tempered, r);
  }

  void rest() {
    describe("columns, scaling, conversion");
    const int64_t n = size_.states;
    std::vector<double> factor(rows_);
    for (double& x : factor) x = uniform(-1, 1);
    factor[0] = 1;
    Buffer out = random(format_, n, -1, 1), scaled = scores_;
    const Buffer before = out;
    of_.add_columns(scores_.data(), n, rows_, factor.data(), out.data());
    of_.scale_rows(scaled.data(), rows_, n, factor.data());
    for (int64_t y = 0; y < n; ++y) {
      double sum = before[y];
      for (int64_t r = 0; r < rows_; ++r) sum += scores_[y * rows_ + r] * factor[r];
      checks.near("column", out[y], sum, 5 * little_ * rows_, y);
    }
    for (int64_t i = 0; i < n * rows_; ++i) {
      checks.near("scaled", scaled[i], scores_[i] * factor[i / n], little_ * 4, i);
    }
    for (const Format& to : kFormats) {
      if (to.bytes > format_.bytes && to.bytes < 8) continue;
      Buffer made(to, n * rows_, 1);
      of_.convert(scores_.data(), n * rows_, type(to), made.data());
      for (int64_t i = 0; i < n * rows_; i += 3) {
        const double x = scores_[i];
        const double single = format_.bytes == 8 && to.bytes < 8 ? kFormats[0].rounded(x) : x;
        checks.near("converted", made[i], to.rounded(single), 0, i);
      }
      checks.that("memory around the numbers", made.guards_are_intact());
    }
  }

  const Format& format_;
  const HeadFunctions& of_;
  Size size_;
  int64_t rows_;
  double little_, softcap_ = 0;
  Buffer scores_{kFormats[0], 0, 0}, bias_{kFormats[0], 0, 0};
  std::vector<double> f_, slope_;
};

}  // namespace

void check_head() {
  for (const Format* format : {&kFormats[0], &kFormats[3]}) {
    for (const Size size : kSizes) HeadBlocks(*format, size).run();
  }
}
