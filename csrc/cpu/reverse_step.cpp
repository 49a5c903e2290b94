// One reverse step: one categorical draw per position by a hierarchical inverse CDF
// (`reverse_step`), and the probabilities of that draw (`reverse_probs`).
//
//   weight of y != x_t: alpha * max(0, exp(l_y) + beta);  weight of x_t: max(0, gamma)
//
// One pass over a row forms the sums of chunks of states. u0 decides whether the token moves, u1
// selects a chunk, and only that chunk is read again. The uniform graph has a beta < 0 that depends
// on S, the sum of exp(l_y), so its rows are read a second time. A temperature and top-p need
// further passes, over rows that move only.
#include <limits>

#include "common/coefficients.h"
#include "common/nucleus.h"
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

struct Scratch {
  std::vector<char> row;
  std::vector<double> chunks, weights;
};

// The distribution of the next token of one position: the weights of the states y != x_t in units
// of alpha (which may be outside the range of float32), their sum, and the weight of x_t.
// `listed`: the weights are those of Scratch.
struct Distribution {
  const RowFunctions* row;
  const void* l;
  Weights weights;
  double alpha, sum, stay;
  bool listed = false;

  double moving() const { return alpha * sum; }
  double total() const { return moving() + stay; }
  bool drawable() const { return total() > 0 && std::isfinite(total()); }
};

// Whether a float32 sum neither overflowed nor nearly underflowed.
bool in_float_range(double sum) { return sum > kSmallSum && std::isfinite(sum); }

// Whether float32 has enough digits left where the terms cancel (much noise removed at once, scores
// nearly equal).
bool resolved(double sum, double terms) { return sum > 1e-2 * terms; }

// Applies temperature and top-p to the weights of the states. The probability of moving is kept:
// alpha changes so that alpha * sum stays the same.
void apply_filter(const ReverseInputs& in, int64_t r, Distribution& d, Scratch& scratch) {
  const int64_t dim = in.scores.dim, x_t = in.x_t[r];
  const double before = d.sum;
  if (!(before > 0) || !std::isfinite(before)) return;
  d.weights.shift = d.row->max(d.l, dim, x_t);
  d.weights.inverse_temperature = in.inverse_temperature;
  const auto sum = [&](double least) {
    d.weights.least = least;
    return d.row->chunk_weights(d.l, dim, x_t, d.weights, scratch.chunks.data());
  };
  const double whole = sum(-std::numeric_limits<double>::infinity());
  d.sum = whole;
  if (in.top_p < 1) {
    const double largest = d.weights.shift, enough = in.top_p * whole;
    const int spare = in.scores.dtype == DType::bfloat16  ? kSpareBFloat16
                      : in.scores.dtype == DType::float16 ? kSpareHalf
                                                          : 0;
    d.sum = sum(in.scores.dtype == DType::float64 ? nucleus<double>(largest, enough, 0, sum)
                                                  : nucleus<float>(largest, enough, spare, sum));
  }
  d.alpha *= before / d.sum;
}

// Whether the weights are clamped at 0: beta is not 0.
bool clamped(const ReverseInputs& in) {
  return in.process.graph == Graph::uniform && in.method != Method::euler;
}

// Lists the weights of a clamped distribution whose terms cancel in double, too: the scores are 0
// but for rounding, and much noise is removed. `alpha`, `shift`: before the filter.
void list_weights(const ReverseInputs& in, int64_t r, double alpha, double shift, Distribution& d,
                  Scratch& scratch) {
  const int64_t dim = in.scores.dim, x_t = in.x_t[r], b = r / in.scores.length;
  const double unit = std::exp(-shift), factor = d.alpha / alpha;
  const Weights& w = d.weights;
  std::vector<double>& weights = scratch.weights;
  weights.resize(dim);
  double sum = 0;
  for (int64_t y = 0; y < dim; ++y) {
    const double l = d.row->get(d.l, y);
    weights[y] = deviation(l, shift, unit);
    if (in.filtered()) {
      const double kept = l < w.least ? 0 : std::exp((l - w.shift) * w.inverse_temperature);
      weights[y] = factor * kept - unit;
    }
    if (y != x_t) sum += weights[y];
  }
  const Removed e(in.method == Method::denoise ? in.sigma[b] : in.dsigma[b]);
  const double vocab = static_cast<double>(in.process.vocab);
  const double excess = uniform_excess(e, in.process.vocab, sum, unit);
  d.alpha = alpha;
  d.stay = std::max((vocab * e.kept + e.lost) * excess, 0.0);
  d.sum = 0;
  d.listed = true;
  for (int64_t y = 0; y < dim; ++y) {
    weights[y] = y == x_t ? 0 : weights[y] + excess;
    if (weights[y] < 0) weights[y] = 0;
    d.sum += weights[y];
  }
}

// The distribution before `apply_filter`; a clamped one is returned after it, because beta needs
// the filtered sum. If u0 certainly keeps the token, the result only says that it stays.
Distribution distribution_of(const ReverseInputs& in, int64_t r, Scratch& scratch, double u0 = 0,
                             bool exact = false) {
  const Scores& scores = in.scores;
  const int64_t b = r / scores.length, x_t = in.x_t[r], dim = scores.dim;
  const int dtype = static_cast<int>(scores.dtype);
  Distribution d{&row_table().fast[dtype], scores.row(r, scratch.row), {}, 0, 0, 0};
  scratch.chunks.resize((dim + kChunk - 1) / kChunk);
  double* chunks = scratch.chunks.data();

  double sum = exact ? 0 : d.row->chunk_weights(d.l, dim, x_t, d.weights, chunks);
  double shift = 0;
  exact = !in_float_range(sum);
  if (exact) {  // shift by the maximum and sum in double
    d.row = &row_table().exact[dtype];
    d.weights.shift = shift = row_shift(in.process.graph, d.row->max(d.l, dim, x_t));
    sum = d.row->chunk_weights(d.l, dim, x_t, d.weights, chunks);
  }
  // Of log scores, where the row holds raw outputs.
  if (in.scale_by_sigma) shift -= log_output_scale(in.sigma[b], in.process.vocab);
  auto c = reverse_coefficients(in.process, in.method, in.sigma[b], in.dsigma[b], sum, shift);
  if (c.alpha < 1e-150) {  // subnormal numbers have too few digits for the shares
    c.alpha *= 1e120;
    c.gamma = c.gamma > 1e186 ? 1e306 : c.gamma * 1e120;
  }
  d.alpha = c.alpha;
  d.sum = sum;
  d.stay = std::isnan(c.gamma) ? c.gamma : std::max(c.gamma, 0.0);
  if (clamped(in)) {
    // In a small step most tokens certainly stay, because the weight of moving is at most alpha *
    // S. The factor covers rounding. Where float32 may have too few digits, the second pass
    // decides.
    const bool plain = resolved(sum + c.beta * static_cast<double>(dim), sum);
    if (plain && u0 * d.stay >= (1 - u0) * d.moving() * (1 + 1e-6)) {
      return {d.row, d.l, d.weights, 0, 0, 1};
    }
    if (in.filtered()) apply_filter(in, r, d, scratch);
    sum = d.sum;
    d.weights.beta = c.beta * (c.alpha / d.alpha);
    d.sum = d.row->chunk_weights(d.l, dim, x_t, d.weights, chunks);
    if (!exact && !resolved(d.sum, sum)) return distribution_of(in, r, scratch, u0, true);
    if (!(d.sum > 1e-6 * sum)) list_weights(in, r, c.alpha, shift, d, scratch);
  }
  return d;
}

// The first state at which the running sum of weights, in the order of the states, exceeds u1 times
// their total.
int64_t draw(const Distribution& d, const Scratch& scratch, int64_t dim, int64_t x_t, double u1) {
  double target = u1 * d.sum, share = 1;
  if (d.listed) {
    int64_t last = -1;
    for (int64_t y = 0; y < dim && target >= 0; ++y) {
      if (!(scratch.weights[y] > 0)) continue;
      target -= scratch.weights[y];
      last = y;
    }
    return last;
  }
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
  // If rounding puts the target beyond the total, `chosen` is the last chunk with weight and share
  // is 1, which selects its last state.
  const int64_t begin = chosen * kChunk;
  return d.row->walk(d.l, begin, std::min(begin + kChunk, dim), x_t, d.weights, share);
}

// Whether the token stays whatever its scores are, which are then not read.
bool stays(const ReverseInputs& in, int64_t r) {
  if (!in.process.is_read(in.x_t[r])) return true;
  return in.method != Method::denoise && in.dsigma[r / in.scores.length] == 0;
}

bool has_values(const ReverseInputs& in, int64_t r) {
  const int64_t b = r / in.scores.length;
  return in.process.is_state(in.x_t[r]) && is_noise(in.sigma[b]) && is_step(in.dsigma[b]);
}

// Calls stay(r) or move(r, scratch) for every position; `move` returns false if no token can be
// drawn.
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
    Distribution d = distribution_of(in, r, scratch, u[2 * r]);
    if (!d.drawable()) return false;
    if (u[2 * r] * d.total() < d.moving()) {
      if (in.filtered() && !clamped(in)) apply_filter(in, r, d, scratch);
      const int64_t state = draw(d, scratch, in.scores.dim, in.x_t[r], u[2 * r + 1]);
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
  const auto put = [&](int64_t r, int64_t y, double value) {
    if (is_double) {
      reinterpret_cast<double*>(out(r))[y] = value;
    } else {
      reinterpret_cast<float*>(out(r))[y] = static_cast<float>(value);
    }
  };
  const auto stay = [&](int64_t r) {
    std::memset(out(r), 0, row_bytes);
    if (in.process.is_state(in.x_t[r])) put(r, in.x_t[r], 1);
  };
  const auto valid = [&](int64_t r) { return has_values(in, r); };
  return run(in, undrawable, threads, valid, stay, [&](int64_t r, Scratch& scratch) {
    Distribution d = distribution_of(in, r, scratch);
    if (in.filtered() && !clamped(in)) apply_filter(in, r, d, scratch);
    const double scale = d.alpha / d.total();
    if (d.listed) {
      for (int64_t y = 0; y < scores.dim; ++y) put(r, y, scratch.weights[y] * scale);
    } else {
      d.row->probs(d.l, out(r), scores.dim, d.weights, scale);
    }
    put(r, in.x_t[r], d.stay / d.total());
    return d.drawable();
  });
}

}  // namespace sedd
