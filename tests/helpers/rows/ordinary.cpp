// Sums, gradients, weights and draws of ordinary scores, for rows of many lengths that begin at
// unaligned addresses, against double formulas with std::exp and std::log.
#include <algorithm>
#include <functional>

#include "tested.h"

namespace {

using namespace sedd;

constexpr int64_t kLengths[] = {0, 1, 3, 15, 16, 17, 63, 1000, 2049};
constexpr int kOffsets[] = {0, 1, 3};

Random uniform;

class OrdinaryRows {
 public:
  explicit OrdinaryRows(const Tested& tested) : t_(tested) {}

  void run() {
    for (int64_t n : kLengths) {
      for (int offset : kOffsets) {
        if (n > 500 && offset < 3) continue;  // an emulator is slow
        make_row(n, offset);
        sums();
        for (const bool stream : {false, true}) {
          gradient("gradient", t_.row.sums_and_gradient, t_.format, stream);
          gradient("fp32 gradient", t_.row.sums_and_fp32_gradient, t_.fp32, stream);
        }
        head_sums();
        head_gradient("head gradient", t_.row.head_gradient, t_.format);
        head_gradient("head fp32 gradient", t_.row.head_fp32_gradient, t_.fp32);
        for (const Term term : {Term::affine, Term::square, Term::log}) {
          for (const bool stream : {false, true}) terms(term, stream);
        }
        accumulate();
        for (const Weights& weights : kWeights) {
          make_weights(weights);
          probs(weights);
          for (const int64_t skip : {int64_t{0}, n / 2, n - 1}) {
            if (n == 0) continue;
            max(skip);
            chunk_weights(weights, skip);
            walk(weights, skip);
          }
        }
      }
    }
    zero();
    elements();
  }

 private:
  // Plain, shifted, clamped, and with a temperature and the least score kept.
  static constexpr Weights kWeights[] = {
      {}, {0, 1.5}, {-0.25, 0}, {0.125, -2}, {0, 2, 1.25}, {-0.5, 0.5, 0.75}, {0, 0.5, 0.75, -1.5}};

  void describe(const char* what, int64_t n, int offset) {
    t_.describe("%s, %lld states, offset %d", what, static_cast<long long>(n), offset);
  }

  void make_row(int64_t n, int offset) {
    offset_ = offset;
    scores_ = Buffer(t_.format, n, offset);
    for (int64_t y = 0; y < n; ++y) scores_.set(y, uniform(-6, 4));
  }

  Buffer random_fp32(int64_t n, int offset) {
    Buffer numbers(t_.fp32, n, offset);
    for (int64_t y = 0; y < n; ++y) numbers.set(y, uniform(-1, 1));
    return numbers;
  }

  void near_sums(Sums got, const std::function<double(int64_t)>& score, int64_t n) {
    double exp = 0, log = 0, log_terms = 0, error = t_.tiny * static_cast<double>(n);
    for (int64_t y = 0; y < n; ++y) {
      const double l = score(y), e = std::exp(l);
      exp += e, log += l, log_terms += std::fabs(l), error += t_.exp_error(l) * e;
    }
    checks.near("the sum of exp", got.exp, exp, error);
    checks.near("the sum of l", got.log, log, 2 * t_.little * log_terms);
  }

  void sums() {
    describe("sums", scores_.size(), offset_);
    near_sums(
        t_.row.sums(scores_.data(), scores_.size()), [&](int64_t y) { return scores_[y]; },
        scores_.size());
  }

  template <class Function>
  void gradient(const char* what, Function function, const Format& to, bool stream) {
    const int64_t n = scores_.size();
    const double a = 1.75, b = 0.375;
    Buffer grad(to, n, offset_ + stream);
    describe(what, n, offset_);
    near_sums(
        function(scores_.data(), grad.data(), n, a, b, stream),
        [&](int64_t y) { return scores_[y]; }, n);
    for (int64_t y = 0; y < n; ++y) {
      const double moving = a * std::exp(scores_[y]);
      checks.near("grad", grad[y], moving - b, t_.stored_error(to, moving - b, moving + b), y);
    }
    checks.that("memory around the gradient", grad.guards_are_intact());
  }

  void head_sums() {
    const int64_t n = scores_.size();
    Buffer bias = random_fp32(n, 2);
    describe("head sums", n, offset_);
    near_sums(
        t_.row.head_sums(scores_.data(), bias.data(), n),
        [&](int64_t y) { return scores_[y] + bias[y]; }, n);
  }

  template <class Function>
  void head_gradient(const char* what, Function function, const Format& to) {
    const int64_t n = scores_.size();
    const double a = 0.75, b = 0.125;
    Buffer bias = random_fp32(n, 2), columns = random_fp32(n, 5), before = columns;
    Buffer row = scores_, grad(to, n, offset_ + 1);
    const bool in_place = to.bytes == t_.format.bytes;
    Buffer& out = in_place ? row : grad;
    describe(what, n, offset_);
    near_sums(
        function(row.data(), bias.data(), out.data(), columns.data(), n, a, b),
        [&](int64_t y) { return scores_[y] + bias[y]; }, n);
    for (int64_t y = 0; y < n; ++y) {
      const double l = scores_[y] + bias[y], moving = a * std::exp(l), g = moving - b;
      const double terms = moving * (1 + std::fabs(l)) + b;
      checks.near("grad", out[y], g, t_.stored_error(to, g, terms), y);
      checks.near("columns", columns[y], before[y] + g,
                  t_.stored_error(t_.fp32, before[y] + g, terms + std::fabs(before[y])), y);
    }
    checks.that("memory around the gradient", out.guards_are_intact());
    checks.that("memory around the columns", columns.guards_are_intact());
  }

  static double value_of(Term term, double z) {
    return term == Term::affine ? z : term == Term::square ? z * z : std::log(z);
  }
  static double slope_of(Term term, double z) {
    return term == Term::affine ? 1 : term == Term::square ? 2 * z : 1 / z;
  }

  void terms(Term term, bool stream) {
    const int64_t n = scores_.size();
    const double a = 0.75, b = 0.25, scale = -1.5;
    Buffer grad(t_.format, n, offset_ + 2);
    describe(term == Term::affine ? "affine" : term == Term::square ? "square" : "log", n, offset_);
    double value = 0, moving = 0, slope = 0, value_error = 0, moving_error = 0, slope_error = 0;
    for (int64_t y = 0; y < n; ++y) {
      const double m = a * std::exp(scores_[y]), z = m + b;
      const double f = value_of(term, z), df = slope_of(term, z);
      value += f, moving += m, slope += df;
      value_error += 2 * t_.little * (std::fabs(f) + z * df);
      moving_error += t_.exp_error(scores_[y]) * m;
      slope_error += 2 * t_.little * df;
    }
    const double alone = t_.row.term_sum(scores_.data(), n, term, a, b);
    checks.near("the sum of f", alone, value, value_error);
    const TermSums sums =
        t_.row.term_gradient(scores_.data(), grad.data(), n, term, a, b, scale, stream);
    checks.near("the sum of a exp(l)", sums.moving, moving, moving_error);
    checks.near("the sum of f'", sums.slope, slope, slope_error);
    for (int64_t y = 0; y < n; ++y) {
      const double m = a * std::exp(scores_[y]), g = scale * slope_of(term, m + b) * m;
      checks.near("grad", grad[y], g, t_.stored_error(t_.format, g, 3 * std::fabs(g)), y);
    }
    checks.that("memory around the gradient", grad.guards_are_intact());
  }

  void accumulate() {
    const int64_t n = scores_.size();
    Buffer to = random_fp32(n, offset_), before = to, from = random_fp32(n, 2);
    describe("accumulate", n, offset_);
    t_.row.accumulate(to.data(), from.data(), n);
    for (int64_t y = 0; y < n; ++y) {
      checks.near("sum", to[y], t_.fp32.rounded(before[y] + from[y]), 0, y);
    }
    checks.that("memory around the sums", to.guards_are_intact());
  }

  // The weight of every state, and how far that of the row functions may be from it.
  void make_weights(const Weights& w) {
    weights_.assign(scores_.size(), 0);
    errors_.assign(scores_.size(), 0);
    for (int64_t y = 0; y < scores_.size(); ++y) {
      const double power = (scores_[y] - w.shift) * w.inverse_temperature, e = std::exp(power);
      if (scores_[y] < w.least) continue;
      weights_[y] = std::max(0.0, e + w.beta);
      errors_[y] = t_.exp_error(power) * e + t_.little * std::fabs(w.beta) + t_.tiny;
    }
  }

  void probs(const Weights& weights) {
    const int64_t n = scores_.size();
    const double scale = 0.375;
    Buffer out(t_.fp32, n, offset_ + 1);
    describe("probs", n, offset_);
    t_.row.probs(scores_.data(), out.data(), n, weights, scale);
    for (int64_t y = 0; y < n; ++y) {
      const double p = scale * weights_[y];
      checks.near("probs", out[y], p, 2 * scale * errors_[y] + t_.stored_error(t_.fp32, p, p), y);
    }
    checks.that("memory around the probabilities", out.guards_are_intact());
  }

  void max(int64_t skip) {
    double most = -kInfinity;
    for (int64_t y = 0; y < scores_.size(); ++y) {
      if (y != skip) most = std::max(most, scores_[y]);
    }
    describe("max", scores_.size(), offset_);
    checks.near("max", t_.row.max(scores_.data(), scores_.size(), skip), most, 0);
  }

  void chunk_weights(const Weights& weights, int64_t skip) {
    const int64_t n = scores_.size(), chunks = (n + kChunk - 1) / kChunk;
    Buffer out(kFormats[3], chunks, 0);
    describe("chunk_weights", n, offset_);
    const double total =
        t_.row.chunk_weights(scores_.data(), n, skip, weights, static_cast<double*>(out.data()));
    double sum = 0, sum_error = 0;
    for (int64_t i = 0; i < chunks; ++i) {
      double chunk = 0, allowed = 0;
      for (int64_t y = i * kChunk; y < std::min(n, (i + 1) * kChunk); ++y) {
        if (y == skip) continue;
        chunk += weights_[y];
        allowed += errors_[y];
      }
      checks.near("the sum of chunk", out[i], chunk, 2 * allowed, i);
      sum += chunk, sum_error += 2 * allowed;
    }
    checks.near("the sum of all chunks", total, sum, sum_error);
    checks.that("memory around the sums", out.guards_are_intact());
  }

  // The state drawn must have weight, and its part of the running sum must contain `share`.
  void walk(const Weights& weights, int64_t skip) {
    const int64_t n = scores_.size(), begin = n > kChunk ? kChunk : n / 5;
    const int64_t end = std::min(n, begin + kChunk);
    double total = 0, allowed = 0;
    for (int64_t y = begin; y < end; ++y) {
      if (y == skip) continue;
      total += weights_[y];
      allowed += 2 * errors_[y];
    }
    describe("walk", n, offset_);
    for (const double share : {0.0, 0.1, 0.5, 0.9, 1 - 1e-9, 1.0}) {
      const int64_t drawn = t_.row.walk(scores_.data(), begin, end, skip, weights, share);
      if (total == 0) {
        checks.near("the state of a chunk without weight", static_cast<double>(drawn), -1, 0);
        continue;
      }
      checks.that("the state is in the chunk", drawn >= begin && drawn < end && drawn != skip);
      double before = 0, own = 0;
      for (int64_t y = begin; y <= drawn; ++y) {
        before += own;
        own = y == skip ? 0 : weights_[y];
      }
      checks.that("the state has weight", own + errors_[drawn] > 0);
      checks.that("the sum before the state is at most the share",
                  before <= share * total + allowed);
      checks.that("the sum with the state exceeds it", before + own > share * total - allowed);
    }
  }

  void zero() {
    for (const int64_t bytes : {0, 1, 63, 64, 65, 1000, 4099}) {
      for (const int offset : {0, 1, 3}) {
        for (const bool stream : {false, true}) {
          const int64_t n = (bytes + t_.format.bytes - 1) / t_.format.bytes;
          Buffer out(t_.format, n, offset);
          describe("zero", n, offset);
          t_.row.zero(out.data(), n * t_.format.bytes, stream);
          for (int64_t y = 0; y < n; ++y) checks.near("zero", out[y], 0, 0, y);
          checks.that("memory around the zeros", out.guards_are_intact());
        }
      }
    }
  }

  void elements() {
    describe("elements", 20, 0);
    for (int64_t y = 0; y < 20; ++y) {
      Buffer row(t_.format, 20, 1), fp32(t_.fp32, 20, 1);
      const double value = kFormats[0].rounded(uniform(-3, 3));
      t_.row.set(row.data(), y, value, false);
      t_.row.set(fp32.data(), y, value, true);
      checks.near("set", row[y], t_.format.rounded(value), 0, y);
      checks.near("set, fp32", fp32[y], value, 0, y);
      checks.near("get", t_.row.get(row.data(), y), row[y], 0, y);
      checks.near("get_fp32", t_.row.get_fp32(fp32.data(), y), value, 0, y);
      t_.row.add_fp32(fp32.data(), y, 0.75);
      checks.near("add_fp32", fp32[y], t_.fp32.rounded(value + 0.75), 0, y);
      for (int64_t other = 0; other < 20; ++other) {
        if (other != y)
          checks.that("a neighbour", std::isnan(row[other]) && std::isnan(fp32[other]));
      }
    }
  }

  const Tested& t_;
  std::vector<double> weights_, errors_;
  int offset_ = 0;  // of the row, in elements
  Buffer scores_{kFormats[0], 0, 0};
};

}  // namespace

void check_ordinary(const Tested& tested) { OrdinaryRows(tested).run(); }
