// Rows with special values, and every number of 16 bits through load and store.
#include <algorithm>

#include "tested.h"

namespace {

using namespace sedd;

class SpecialRows {
 public:
  explicit SpecialRows(const Tested& tested) : t_(tested) {
    for (int64_t y = 0; y < 17; ++y) zeros_.set(y, 0);
  }

  void run() {
    for (const int64_t at : {0, 5, 16, 36}) {
      special_values(at);
      if (t_.single) no_logarithm(at);
    }
    special_terms();
    equal_terms();
    if (t_.format.bytes == 2) every_number();
  }

 private:
  // exp(x) in the compute type of the table.
  double exp_of(double x) const {
    const double e = std::exp(x);
    return t_.single && e > kFormats[0].largest() ? kInfinity : e;
  }

  // One special value among ordinary scores: sums, gradients, weights and maximum.
  void special_values(int64_t at) {
    const int64_t n = 37;
    const double a = 2, b = 0.25, ordinary = std::exp(0.5);
    for (const double value :
         {kInfinity, -kInfinity, kNaN, t_.format.smallest(), -t_.format.smallest(), -87.0, -95.0,
          -120.0, -745.0, -1e4, -t_.format.largest(), 87.0, 100.0, 700.0, 720.0,
          t_.format.largest()}) {
      Buffer row(t_.format, n, 1), grad(t_.format, n, 1), fp32(t_.fp32, n, 1);
      for (int64_t y = 0; y < n; ++y) row.set(y, 0.5);
      row.set(at, value);
      const double l = row[at], e = exp_of(l);
      t_.describe("a score of %g at %lld", l, static_cast<long long>(at));
      const double error = std::isfinite(l) && std::isfinite(e) ? t_.exp_error(l) * e : 0;
      const double others = 36 * ordinary;
      const Sums sums = t_.row.sums(row.data(), n);
      checks.near("the sum of exp", sums.exp, others + e, error + 2 * t_.little * (others + e));
      checks.near("the sum of l", sums.log, 18 + l, t_.little * (18 + std::fabs(l)));
      t_.row.sums_and_gradient(row.data(), grad.data(), n, a, b, false);
      t_.row.sums_and_fp32_gradient(row.data(), fp32.data(), n, a, b, false);
      const Buffer* gradients[] = {&grad, &fp32};
      for (const Buffer* got : gradients) {
        const Format& to = got->format();
        for (int64_t y = 0; y < n; ++y) {
          const double g = to.rounded(a * (y == at ? e : ordinary) - b);
          const double some =
              std::isfinite(g) ? t_.stored_error(to, g, std::fabs(g)) + 2 * error : 0;
          checks.near(got == &grad ? "grad" : "fp32 grad", (*got)[y], g, some, y);
        }
      }
      checks.near("max", t_.row.max(row.data(), n, at ? 0 : 1),
                  std::isnan(l) ? 0.5 : std::max(l, 0.5), 0);
      double chunk;
      const double skipped = t_.row.chunk_weights(row.data(), n, at ? 0 : 1, {}, &chunk);
      checks.near("the sum of weights", skipped, 35 * ordinary + e,
                  error + 2 * t_.little * (others + e));
    }
  }

  // In float32 a sum of logarithms is NaN where one is not of a positive normal number.
  void no_logarithm(int64_t at) {
    Buffer row(t_.format, 37, 1);
    for (const double l : {-kInfinity, -89.0, kInfinity, kNaN, 1.0}) {
      for (int64_t y = 0; y < 37; ++y) row.set(y, 3);
      row.set(at, l);
      const double b = l == 1 ? -3 : 0;  // exp(1) - 3 < 0; exp(-89) is below the normal numbers
      t_.describe("exp(%g) + %g at %lld", l, b, static_cast<long long>(at));
      checks.near("the sum of f", t_.row.term_sum(row.data(), 37, Term::log, 1, b), kNaN, 0);
    }
  }

  // Logarithms of one number, over several blocks: also with mantissas at the ends of [sqrt(1/2),
  // sqrt(2)), and with large exponents.
  void equal_terms() {
    const int64_t n = 5000;
    Buffer row(t_.format, n, 1);
    for (int64_t y = 0; y < n; ++y) row.set(y, 0);
    for (const double z : {1.41421354, 1.41421366, 0.70710677, 0.70710683, 1.0, 1.3e38, 1.2e-38}) {
      t_.describe("log of %g", z);
      const double expected = n * std::log(t_.single ? static_cast<float>(z) : z);
      checks.near("the sum of f", t_.row.term_sum(row.data(), n, Term::log, z, 0), expected,
                  t_.little * (n + std::fabs(expected)));
    }
  }

  // log of 0, of negative and of infinite numbers; only the exact table defines them.
  void special_terms() {
    if (t_.single) return;
    Buffer row(t_.format, 19, 1);
    for (const double at_0 : {-kInfinity, 0.0, kInfinity, kNaN}) {
      for (int64_t y = 0; y < 19; ++y) row.set(y, y ? 0.5 : at_0);
      for (const double b : {0.0, 1e-310, -2.0}) {
        double expected = 0;
        for (int64_t y = 0; y < 19; ++y) expected += std::log(std::exp(row[y]) + b);
        t_.describe("log of exp(%g) + %g", at_0, b);
        const double got = t_.row.term_sum(row.data(), 19, Term::log, 1, b);
        checks.near("the sum of f", got, expected,
                    std::isfinite(expected) ? 1e-12 * (1 + std::fabs(expected)) : 0);
      }
    }
  }

  // Every number of 16 bits is loaded, in a vector and alone, and stored; and the numbers halfway
  // to the next one, which are rounded to even.
  void every_number() {
    t_.describe("every number");
    Buffer row(t_.format, 17, 1);
    for (uint64_t bits = 0; bits < 1 << 16; bits += t_.single ? 1 : 7) {
      const double number = t_.format.decode(bits), size = std::fabs(number);
      const auto at = static_cast<int64_t>(bits);
      for (int64_t y = 0; y < 17; ++y) row.set_bits(y, bits);
      checks.near("get", t_.row.get(row.data(), 16), number, 0, at);
      checks.near("max", t_.row.max(row.data(), 17, 16), std::isnan(number) ? -kInfinity : number,
                  0, at);
      if (!std::isfinite(number)) continue;
      const double above = t_.format.decode((bits & 0x7fff) + 1);
      const double below = size > 0 ? t_.format.decode((bits & 0x7fff) - 1) : 0;
      const double gap = std::isfinite(above) ? above - size : size - below;
      stored(number, at);
      stored(number + std::copysign(gap / 2, number), at);
    }
    for (const double large : {65537.0, 1e30, kFormats[0].largest()}) stored(large, 0);
    // A NaN with all bits set must not be rounded to infinity or zero.
    double nan;
    const uint64_t ones = 0x7fffffffffffffff;
    std::memcpy(&nan, &ones, sizeof nan);
    for (const double value : {nan, -nan}) {
      t_.row.set(row.data(), 0, value, false);
      checks.near("set", row[0], kNaN, 0);
    }
  }

  // Stores a number in a whole vector and in a tail. The instruction of AVX512_BF16 stores 0 for
  // numbers below the normal ones.
  void stored(double value, int64_t at) {
    t_.row.sums_and_gradient(zeros_.data(), grad_.data(), 17, 0, -value, false);
    const double allowed = t_.single && std::fabs(value) < t_.tiny ? t_.tiny : 0;
    checks.near("grad", grad_[0], t_.format.rounded(value), allowed, at);
    for (int64_t y = 1; y < 17; ++y) {
      if (grad_.bits(y) == grad_.bits(0)) continue;
      checks.near("grad, another lane", grad_[y], grad_[0], allowed, at);
    }
  }

  const Tested& t_;
  Buffer zeros_{t_.format, 17, 1}, grad_{t_.format, 17, 1};
};

}  // namespace

void check_special(const Tested& tested) { SpecialRows(tested).run(); }
