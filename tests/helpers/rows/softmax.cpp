// The softmax of a head's output: largest, single outputs, exponentials and their sums, with and
// without a softcap, against double formulas. Some states have a bias of -inf.
#include <algorithm>

#include "tested.h"

namespace {

using namespace sedd;

constexpr int64_t kLengths[] = {1, 3, 15, 16, 17, 63, 1000, 2049};

Random uniform;

class SoftmaxRows {
 public:
  SoftmaxRows(const Tested& tested, int64_t n, double softcap)
      : t_(tested),
        n_(n),
        softcap_(softcap),
        scores_(tested.format, n, 1),
        bias_(tested.fp32, n, 2),
        f_(n),
        slope_(n, 1) {
    for (int64_t y = 0; y < n; ++y) {
      scores_.set(y, uniform(-4, 4));
      bias_.set(y, n > 1 && y % 7 == 3 ? -kInfinity : uniform(-2, 2));
      const double raw = scores_[y] + bias_[y];
      f_[y] = raw;
      if (softcap == 0 || raw == -kInfinity) continue;
      const double t = std::tanh(raw / softcap);
      f_[y] = softcap * t;
      slope_[y] = 1 - t * t;
    }
  }

  void run() {
    largest();
    outputs();
    for (const bool sloped : {false, true}) exponentials(sloped);
    for (const double inverse : {1.0, 0.5, 3.0}) softmax(inverse);
  }

 private:
  // The relative error of exp(f - shift); that of f is absolute, and the tanh's own.
  double error(double f) const {
    return f == -kInfinity ? 0 : 4 * t_.little * (4 + std::fabs(f) + softcap_);
  }
  double shift() const { return *std::max_element(f_.begin(), f_.end()); }

  void describe(const char* what) {
    t_.describe("%s, %lld states, softcap %g", what, static_cast<long long>(n_), softcap_);
  }

  void largest() {
    describe("head max");
    const double got = t_.row.head_max(scores_.data(), bias_.data(), n_, softcap_);
    checks.near("largest", got, shift(), 4 * t_.little * (4 + softcap_));
  }

  void outputs() {
    describe("head output");
    for (int64_t y = 0; y < n_; y += 1 + n_ / 20) {
      const double got = t_.row.head_output(scores_.data(), bias_.data(), y, softcap_);
      checks.near("f", got, f_[y], 4 * t_.little * (4 + softcap_), y);
    }
  }

  void exponentials(bool sloped) {
    describe(sloped ? "head exp, sloped" : "head exp");
    double sum = 0, allowed = 0;
    for (const double f : f_) {
      const double e = std::exp(f - shift());
      sum += e, allowed += e * error(f);
    }
    Buffer row = scores_;
    const double alone =
        t_.row.head_exp(row.data(), bias_.data(), nullptr, n_, shift(), softcap_, sloped);
    checks.near("sum", alone, sum, allowed);
    const double stored =
        t_.row.head_exp(row.data(), bias_.data(), row.data(), n_, shift(), softcap_, sloped);
    checks.near("sum, stored", stored, sum, allowed);
    for (int64_t y = 0; y < n_; ++y) {
      double e = std::exp(f_[y] - shift()), terms = e * error(f_[y]) / t_.little;
      if (sloped) e *= slope_[y];
      checks.near("e", row[y], e, t_.stored_error(t_.format, e, terms), y);
    }
    checks.that("memory around the row", row.guards_are_intact());
  }

  void softmax(double inverse) {
    describe("head softmax");
    double exp = 0, weighted = 0, tempered = 0, e_error = 0, w_error = 0, t_error = 0;
    for (const double f : f_) {
      const double d = f - shift(), e = std::exp(d), t = std::exp(d * inverse);
      const double relative = error(f) * (1 + inverse);
      exp += e, tempered += t;
      e_error += e * relative, t_error += t * relative;
      if (e == 0) continue;
      weighted += d * e;
      w_error += e * relative * (1 + std::fabs(d));
    }
    const SoftmaxSums sums =
        t_.row.head_softmax(scores_.data(), bias_.data(), n_, shift(), inverse, softcap_);
    checks.near("exp", sums.exp, exp, e_error);
    checks.near("weighted", sums.weighted, weighted, w_error);
    checks.near("tempered", sums.tempered, tempered, t_error);
  }

  const Tested& t_;
  int64_t n_;
  double softcap_;
  Buffer scores_, bias_;
  std::vector<double> f_, slope_;
};

}  // namespace

void check_softmax(const Tested& tested) {
  for (const int64_t n : kLengths) {
    for (const double softcap : {0.0, 2.5, 30.0}) SoftmaxRows(tested, n, softcap).run();
  }
}
