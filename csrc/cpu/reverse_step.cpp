// One reverse step: a categorical draw a position by a hierarchical inverse CDF, and its law
// written out. One pass gives the weights of chunks of states, u1 picks the chunk, only that one is
// read again; the clamped law of the uniform graph needs the sum S first, so a second pass. A
// temperature and top-p take more, of the rows that move only.
#include <limits>

#include "common/nucleus.h"
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

struct Scratch {
  std::vector<char> row;
  std::vector<double> chunks;
};

// The law of one position: weights of the states y != x_t, in units of alpha (which float32 need
// not hold), their sum, and the weight of x_t. Where scores are raw outputs their scale is in alpha
// too, and in beta.
struct Law {
  const RowFunctions* row;
  const void* l;
  Weights weights;
  double alpha, sum, stay;

  bool clamped() const { return weights.beta != 0; }
  double moving() const { return alpha * sum; }
  double total() const { return moving() + stay; }
  bool drawable() const { return total() > 0 && std::isfinite(total()); }
};

// Sums S * unit of the row shifted so; false where float32 overflowed or all but vanished.
bool in_float_range(double sum) { return sum > 1e-30 && std::isfinite(sum); }

// False where so little is left of the terms that cancel that float32 does not resolve it (much
// noise removed at once, scores nearly equal).
bool resolved(double sum, double terms) { return sum > 1e-2 * terms; }

// Puts the shares of the states at a temperature and cuts them to the nucleus. Their sum stays:
// what the weights gain or lose, alpha takes back.
void reshape(const ReverseInputs& in, int64_t r, Law& law, Scratch& scratch) {
  const int64_t dim = in.scores.dim, x_t = in.x_t[r];
  const double before = law.sum;
  if (!(before > 0) || !std::isfinite(before)) return;
  law.weights.shift = law.row->max(law.l, dim, x_t);
  law.weights.inverse_temperature = in.inverse_temperature;
  const auto sum = [&](double least) {
    law.weights.least = least;
    return law.row->chunk_weights(law.l, dim, x_t, law.weights, scratch.chunks.data());
  };
  const double whole = sum(-std::numeric_limits<double>::infinity());
  law.sum = whole;
  if (in.top_p < 1) {
    const double largest = law.weights.shift, enough = in.top_p * whole;
    const int spare = in.scores.dtype == DType::bfloat16  ? kSpareBFloat16
                      : in.scores.dtype == DType::float16 ? kSpareHalf
                                                          : 0;
    law.sum = sum(in.scores.dtype == DType::float64 ? nucleus<double>(largest, enough, 0, sum)
                                                    : nucleus<float>(largest, enough, spare, sum));
  }
  law.alpha *= before / law.sum;
}

// The law before `reshape`, but for one that is clamped, which needs it first; or, where the
// uniform u0 is such that the position stays whatever clamping takes away, only that it stays.
Law law(const ReverseInputs& in, int64_t r, Scratch& scratch, double u0 = 0, bool exact = false) {
  const Scores& scores = in.scores;
  const int64_t b = r / scores.length, x_t = in.x_t[r], dim = scores.dim;
  const int dtype = static_cast<int>(scores.dtype);
  Law law{&row_table().fast[dtype], scores.row(r, scratch.row), {}, 0, 0, 0};
  scratch.chunks.resize((dim + kChunk - 1) / kChunk);
  double* chunks = scratch.chunks.data();

  double sum = exact ? 0 : law.row->chunk_weights(law.l, dim, x_t, law.weights, chunks);
  double unit = 1;
  exact = !in_float_range(sum);
  if (exact) {  // shift by the maximum and sum in double
    law.row = &row_table().exact[dtype];
    law.weights.shift = std::max(law.row->max(law.l, dim, x_t), -700.0);
    unit = std::exp(-law.weights.shift);
    sum = law.row->chunk_weights(law.l, dim, x_t, law.weights, chunks);
  }
  const double scale = in.scale_by_sigma ? output_scale(in.sigma[b], in.process.vocab) : 1;
  const auto c = reverse_coefficients(in.process.graph, in.method, in.process.vocab, in.sigma[b],
                                      in.dsigma[b], sum * scale, unit);
  const Law stays{law.row, law.l, law.weights, 0, 0, 1};
  if (c.alpha == 0) return stays;  // no noise removed
  law.alpha = c.alpha * scale;
  law.sum = sum;
  law.stay = std::isnan(c.gamma) ? c.gamma : std::max(c.gamma, 0.0);
  if (c.beta != 0) {
    // Of a small step most rows: the weight of moving is at most alpha * S. The factor is for
    // rounding; where float32 might not resolve the law the second pass finds out.
    const bool plain = resolved(sum + c.beta / law.alpha * static_cast<double>(dim), sum);
    if (plain && u0 * law.stay >= (1 - u0) * law.moving() * (1 + 1e-6)) return stays;
    if (in.shaped()) reshape(in, r, law, scratch);
    sum = law.sum;
    law.weights.beta = c.beta / law.alpha;
    law.sum = law.row->chunk_weights(law.l, dim, x_t, law.weights, chunks);
    if (!exact && !resolved(law.sum, sum)) return ::sedd::law(in, r, scratch, u0, true);
  }
  return law;
}

// The state at which the running sum of weights, in natural order, passes u1 times their sum.
int64_t draw(const Law& law, const Scratch& scratch, int64_t dim, int64_t x_t, double u1) {
  double target = u1 * law.sum, share = 1;
  const int64_t chunks = static_cast<int64_t>(scratch.chunks.size());
  int64_t chosen = 0;
  for (int64_t i = 0; i < chunks; ++i) {
    const double weight = scratch.chunks[i];
    if (!(weight > 0)) continue;
    chosen = i;
    if (target < weight) {
      share = target / weight;
      break;
    }
    target -= weight;
  }
  // Rounding may leave the target past the last chunk that has weight (share is 1): its last state.
  const int64_t begin = chosen * kChunk;
  return law.row->walk(law.l, begin, std::min(begin + kChunk, dim), x_t, law.weights, share);
}

bool stays(const ReverseInputs& in, int64_t r) {
  return in.process.graph == Graph::absorbing && in.x_t[r] != in.process.vocab;
}

bool has_values(const ReverseInputs& in, int64_t r) {
  const int64_t b = r / in.scores.length;
  return in.process.is_state(in.x_t[r]) && is_noise(in.sigma[b]) && is_step(in.dsigma[b]);
}

// Runs every position that may move; `move(r, scratch)` says whether it could be drawn.
template <class Valid, class Stay, class Move>
bool run(const ReverseInputs& in, int64_t* undrawable, int threads, const Valid& valid,
         const Stay& stay, const Move& move) {
  Faults faults;
  parallel_for(in.scores.rows(), in.scores.dim, threads, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t r = begin; r < end; ++r) {
      if (!valid(r)) {
        faults.bad_value = true;
        stay(r);
      } else if (stays(in, r)) {
        stay(r);
      } else if (!move(r, scratch)) {
        faults.mark_undrawable(r);
      }
    }
  });
  *undrawable = faults.undrawable;
  return !faults.bad_value;
}

}  // namespace

bool reverse_step(const ReverseInputs& in, const double* u, int64_t* x_s, int64_t* undrawable,
                  int threads) {
  const auto valid = [&](int64_t r) {
    return has_values(in, r) && is_uniform(u[2 * r]) && is_uniform(u[2 * r + 1]);
  };
  const auto stay = [&](int64_t r) { x_s[r] = in.x_t[r]; };
  return run(in, undrawable, threads, valid, stay, [&](int64_t r, Scratch& scratch) {
    stay(r);
    Law l = law(in, r, scratch, u[2 * r]);
    if (!l.drawable()) return false;
    if (u[2 * r] * l.total() < l.moving()) {
      if (in.shaped() && !l.clamped()) reshape(in, r, l, scratch);
      const int64_t state = draw(l, scratch, in.scores.dim, in.x_t[r], u[2 * r + 1]);
      if (state >= 0) x_s[r] = state;
    }
    return true;
  });
}

bool reverse_probs(const ReverseInputs& in, void* probs, int64_t* undrawable, int threads) {
  const Scores& scores = in.scores;
  const bool is_double = scores.dtype == DType::float64;
  const int64_t row_bytes = scores.dim * (is_double ? 8 : 4);
  const auto out = [&](int64_t r) { return static_cast<char*>(probs) + r * row_bytes; };
  const auto put = [&](int64_t r, double value) {
    const int64_t x_t = in.x_t[r];
    if (!in.process.is_state(x_t)) return;
    if (is_double) {
      reinterpret_cast<double*>(out(r))[x_t] = value;
    } else {
      reinterpret_cast<float*>(out(r))[x_t] = static_cast<float>(value);
    }
  };
  const auto stay = [&](int64_t r) {
    std::memset(out(r), 0, row_bytes);
    put(r, 1);
  };
  const auto valid = [&](int64_t r) { return has_values(in, r); };
  return run(in, undrawable, threads, valid, stay, [&](int64_t r, Scratch& scratch) {
    Law l = law(in, r, scratch);
    if (in.shaped() && !l.clamped()) reshape(in, r, l, scratch);
    l.row->probs(l.l, out(r), scores.dim, l.weights, l.alpha / l.total());
    put(r, l.stay / l.total());
    return l.drawable();
  });
}

}  // namespace sedd
