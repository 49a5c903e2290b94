// One reverse step of one position, by a block of threads: a draw by a hierarchical inverse CDF.
//
//   weight of y != x_t: alpha * max(0, exp(l_y) + beta);  weight of x_t: max(0, gamma)
//
// alpha, beta and gamma (coefficients.h) depend on S, the sum of exp(l_y) over y != x_t. One pass
// over the row (traverse.h says how it is divided into chunks) forms the sum of each chunk. The
// uniform u0 decides whether the token moves; u1 selects a chunk, and only that chunk is read
// again. The uniform graph has beta < 0: its weights need S first, so a row that may move is read a
// second time. A temperature and top-p also need further passes over the rows that may move.
#pragma once

#include <type_traits>

#include "coefficients.h"
#include "nucleus.h"
#include "traverse.h"

namespace sedd {

struct ReverseArguments {
  const void* log_score;
  Layout scores;
  const int64_t* x_t;    // (B, L)
  const double* sigma;   // (B,)
  const double* dsigma;  // (B,)
  const double* u;       // (B, L, 2)
  int64_t* x_s;          // (B, L)
  Process process;
  Method method;
  double inverse_temperature;  // exponent of the weights of the tokens; their sum is kept
  double top_p;                // the tokens kept have at least this share of the weight

  SEDD_HOST_DEVICE bool filtered() const { return inverse_temperature != 1 || top_p < 1; }
};

// Four vectors in flight: every chunk costs a reduction over its warp, and larger chunks are fewer.
template <class T>
using ReverseRow = Row<T, 4>;

struct ReverseShared {
  double slots[kMaxWarps];
  ReverseCoefficients coefficients;
  bool stays;
};

// weight(l) = max(0, exp((l - shift) * inverse_temperature) + beta), and 0 where l < least; in
// units of alpha, which may be outside the range of float32. If `unit` is not 0, weight(l) =
// max(0, deviation(l) + beta); there a filter multiplies exp by `factor`, which is 0 without one.
template <class C>
struct Weights {
  C beta = 0, shift = 0, inverse_temperature = 1, least = static_cast<C>(-HUGE_VAL);
  C unit = 0, factor = 0;

  SEDD_HOST_DEVICE C operator()(C l) const {
    if (l < least) return 0;
    const C w = beta + (unit > 0 ? deviation(l) : exponential((l - shift) * inverse_temperature));
    return w < 0 ? C(0) : w;  // keeps NaN
  }
  SEDD_HOST_DEVICE C deviation(C l) const {
    if (factor == 0) return static_cast<C>(sedd::deviation(l, shift, unit));
    const C kept = l < least ? C(0) : exponential((l - shift) * inverse_temperature);
    return factor * kept - unit;
  }
};

// Which form of weight a pass computes: exp(l); max(0, exp(l) + beta); all of `Weights`; its
// deviation, which may be negative.
enum class Form { plain, clamped, general, deviation };

// The weight of a score that was loaded as a T.
template <Form form, class T, class C>
SEDD_HOST_DEVICE C weight_of(const Weights<C>& weights, C l) {
  if constexpr (form == Form::general) return weights(l);
  if constexpr (form == Form::deviation) return weights.deviation(l);
  const C e = exponential_of<T>(l);
  if constexpr (form == Form::plain) return e;
  const C w = e + weights.beta;
  return w < 0 ? C(0) : w;
}

// chunks[i] = sum of the weights in chunk i, without x_t; returns the sum of all chunks.
template <class C, bool vectors, Form form, class T, class Block>
SEDD_HOST_DEVICE double chunk_pass(Block& block, double* chunks, const ReverseRow<T>& row, int x_t,
                                   const Weights<C>& weights) {
  C sum = 0;
  const auto visit = [&](int y, auto& l) {
    constexpr int count = sizeof(l) / sizeof(C);
    SEDD_UNROLL
    for (int j = 0; j < count; ++j) l[j] = weight_of<form, T>(weights, l[j]);
    replace(l, y, x_t, C(0));
    sum += tree_sum(l);
  };
  const auto finish = [&](int chunk) {
    const C whole = warp_reduce<Sum>(block, sum);
    if (lane(block) == 0) chunks[chunk] = whole;
    sum = 0;
  };
  if constexpr (vectors) {
    visit_vectors<false>(block, row, visit, finish);
  } else {
    visit_states<C>(block, row, visit, finish);
  }
  block.sync();
  return warp_total(block, chunks, row.chunks());
}

// chunk_pass in vector loads where the row is contiguous and the pass is not the `exact` one in
// double, else in single loads.
template <bool exact, Form form, class C, class T, class Block>
SEDD_HOST_DEVICE double best_pass(Block& block, double* chunks, const ReverseRow<T>& row, int x_t,
                                  const Weights<C>& weights) {
  if constexpr (!exact) {
    if (row.stride == 1) return chunk_pass<C, true, form>(block, chunks, row, x_t, weights);
  }
  return chunk_pass<C, false, form>(block, chunks, row, x_t, weights);
}

// The largest score, ignoring x_t and NaN.
template <bool exact, class T, class Block>
SEDD_HOST_DEVICE double row_max(Block& block, double* slots, const ReverseRow<T>& row, int x_t) {
  using C = Compute<T>;
  C best = static_cast<C>(-HUGE_VAL);
  const auto visit = [&](int y, auto& l) {
    constexpr int count = sizeof(l) / sizeof(C);
    replace(l, y, x_t, static_cast<C>(-HUGE_VAL));
    SEDD_UNROLL
    for (int j = 0; j < count; ++j) best = l[j] > best ? l[j] : best;
  };
  const auto finish = [](int) {};
  if (!exact && row.stride == 1) {
    visit_vectors<false>(block, row, visit, finish);
  } else {
    visit_states<C>(block, row, visit, finish);
  }
  return block_reduce<Largest>(block, best, slots);
}

// How many of the last bits are 0 in every T once it is converted to float.
template <class T>
constexpr int kSpare = std::is_same<T, BFloat16>::value ? kSpareBFloat16
                       : sizeof(T) == 2                 ? kSpareHalf
                                                        : 0;

// Applies temperature and top-p: sets shift, inverse_temperature and least of `weights` (beta is 0)
// and returns the sum of the weights, whose chunk sums are in `chunks`. All threads must call it.
template <bool exact, class C, class T, class Block>
SEDD_HOST_DEVICE double filtered_sums(Block& block, ReverseShared& shared, double* chunks,
                                      const ReverseRow<T>& row, int x_t, const ReverseArguments& in,
                                      Weights<C>& weights) {
  using Value = typename std::conditional<sizeof(T) == 8, double, float>::type;
  const double largest = row_max<exact>(block, shared.slots, row, x_t);
  weights.shift = static_cast<C>(largest);
  weights.inverse_temperature = static_cast<C>(in.inverse_temperature);
  const auto sum = [&](double least) {
    weights.least = static_cast<C>(least);
    block.sync();  // until all threads have read the sums of the last pass
    return best_pass<exact, Form::general>(block, chunks, row, x_t, weights);
  };
  const double whole = sum(-HUGE_VAL);
  if (in.top_p >= 1) return whole;
  return sum(nucleus<Value>(largest, in.top_p * whole, kSpare<T>, sum));
}

SEDD_HOST_DEVICE inline double positive(double x) { return x > 0 ? x : 0; }

// Whether a float32 sum neither overflowed nor underflowed, and whether enough digits of it are
// left once beta is added (the terms cancel where much noise is removed at once and scores are
// nearly equal).
SEDD_HOST_DEVICE inline bool in_float_range(double sum) { return sum > 1e-30 && is_finite(sum); }
SEDD_HOST_DEVICE inline bool resolved(double sum, double terms) { return sum > 1e-2 * terms; }

// By one warp: the first state at which the running sum of weights, in the order of the states,
// exceeds u1 times their total.
template <Form form, class C, class T, class Block>
SEDD_HOST_DEVICE int64_t draw(Block& block, const double* chunks, const ReverseRow<T>& row, int x_t,
                              const Weights<C>& weights, double u1) {
  const SearchResult chunk = warp_search(block, row.chunks(), u1, [&](int i) { return chunks[i]; });
  if (chunk.index < 0) return x_t;
  const int begin = row.begin(chunk.index);
  const SearchResult state =
      warp_search(block, row.end(chunk.index) - begin, chunk.share, [&](int i) -> double {
        const C l = static_cast<C>(row[begin + i]);
        return begin + i == x_t ? 0 : weight_of<form, T>(weights, l);
      });
  return state.index < 0 ? x_t : begin + state.index;
}

// One position. Its values are read from memory again where they are needed instead of being kept
// in registers, because registers limit how many loads are in flight.
class ReversePosition {
 public:
  SEDD_HOST_DEVICE ReversePosition(const ReverseArguments& in, int64_t row) : in_(in), row_(row) {}

  SEDD_HOST_DEVICE const ReverseArguments& arguments() const { return in_; }
  SEDD_HOST_DEVICE int64_t x_t() const { return in_.x_t[row_]; }
  SEDD_HOST_DEVICE double u0() const { return in_.u[2 * row_]; }
  SEDD_HOST_DEVICE double u1() const { return in_.u[2 * row_ + 1]; }
  SEDD_HOST_DEVICE double sigma() const { return in_.sigma[row_ / in_.scores.length]; }
  SEDD_HOST_DEVICE double dsigma() const { return in_.dsigma[row_ / in_.scores.length]; }
  SEDD_HOST_DEVICE bool may_move() const {
    return is_noise(sigma()) && is_step(dsigma()) && in_.process.is_state(x_t()) &&
           is_uniform(u0()) && is_uniform(u1()) && in_.process.is_read(x_t());
  }
  SEDD_HOST_DEVICE ReverseCoefficients coefficients(double sum, double shift) const {
    return reverse_coefficients(in_.process, in_.method, sigma(), dsigma(), sum, shift);
  }
  SEDD_HOST_DEVICE Removed removed() const {
    return Removed(in_.method == Method::denoise ? sigma() : dsigma());
  }
  // Whether u0 makes the token move; false where the total weight is zero or not finite.
  SEDD_HOST_DEVICE bool moves(const ReverseCoefficients& c, double sum) const {
    const double moving = c.alpha * sum, mass = moving + positive(c.gamma);
    return c.gamma == c.gamma && mass > 0 && is_finite(mass) && u0() * mass < moving;
  }
  // Whether the token certainly stays, so that no second pass is needed: no noise is removed, or u0
  // keeps it even with alpha * S, the largest possible weight of moving. The factor covers
  // rounding. Where float32 may have too few digits left, the answer is false and the second pass
  // decides.
  SEDD_HOST_DEVICE bool must_stay(const ReverseCoefficients& c, double sum) const {
    if (c.alpha == 0) return true;
    const double least = sum + c.beta * static_cast<double>(in_.scores.dim);
    return resolved(least, sum) &&
           u0() * positive(c.gamma) >= (1 - u0()) * c.alpha * sum * (1 + 1e-6);
  }
  SEDD_HOST_DEVICE void store(int64_t state) const { in_.x_s[row_] = state; }

 private:
  const ReverseArguments& in_;
  int64_t row_;
};

// The step of one position, computed in type C. `exact`: scores are shifted by their maximum and
// everything is in double. `filtered`: a temperature or top-p applies. Returns false where the
// range or precision of C does not suffice.
template <class C, bool exact, bool clamped, bool filtered, class T, class Block>
SEDD_HOST_DEVICE bool step_row(Block& block, ReverseShared& shared, double* chunks,
                               const ReversePosition& position, const ReverseRow<T>& scores,
                               int x_t) {
  constexpr Form first = exact ? Form::general : Form::plain;
  constexpr Form last = exact || filtered ? Form::general : clamped ? Form::clamped : Form::plain;
  const bool leader = block.thread() == 0;
  Weights<C> weights;
  if constexpr (exact) {
    const double largest = row_max<exact>(block, shared.slots, scores, x_t);
    weights.shift = row_shift(position.arguments().process.graph, largest);
  }
  double sum = best_pass<exact, first>(block, chunks, scores, x_t, weights);
  if (!exact && !in_float_range(sum)) return false;
  if constexpr (clamped) {
    // In a small step most tokens certainly stay, and need no second pass.
    if (leader) {
      shared.coefficients = position.coefficients(sum, weights.shift);
      shared.stays = position.must_stay(shared.coefficients, sum);
    }
    block.sync();
    if (shared.stays) return true;
    ReverseCoefficients c = shared.coefficients;
    const double shift = weights.shift;
    double whole = sum, factor = 0;
    if constexpr (filtered) {
      whole =
          filtered_sums<exact>(block, shared, chunks, scores, x_t, position.arguments(), weights);
      factor = sum / whole;
      block.sync();  // until all threads have read the sums
    }
    const Removed removed = position.removed();
    if (exact && removed.lost > 0.5) {  // the terms of exp(l) + beta may cancel
      const int64_t vocab = position.arguments().process.vocab;
      weights.unit = static_cast<C>(::exp(-shift));
      weights.factor = static_cast<C>(factor);
      const double deviations =
          best_pass<exact, Form::deviation>(block, chunks, scores, x_t, weights);
      const double excess = uniform_excess(removed, vocab, deviations, weights.unit);
      weights.beta = static_cast<C>(excess);
      c.gamma = (static_cast<double>(vocab) * removed.kept + removed.lost) * excess;
      block.sync();  // until all threads have read the sums
    } else {
      if constexpr (filtered) c.alpha *= factor;
      weights.beta = static_cast<C>(filtered ? c.beta / factor : c.beta);
    }
    sum = best_pass<exact, last>(block, chunks, scores, x_t, weights);
    if (!exact && !resolved(sum, whole)) return false;
    if (warp(block) != 0 || !position.moves(c, sum)) return true;
  } else if constexpr (filtered) {
    if (leader) shared.stays = !position.moves(position.coefficients(sum, weights.shift), sum);
    block.sync();
    if (shared.stays) return true;
    filtered_sums<exact>(block, shared, chunks, scores, x_t, position.arguments(), weights);
    if (warp(block) != 0) return true;
  } else {
    if (warp(block) != 0) return true;
    const int moves = leader && position.moves(position.coefficients(sum, weights.shift), sum);
    if (!block.shuffle(moves, 0)) return true;
  }
  const int64_t state = draw<last>(block, chunks, scores, x_t, weights, position.u1());
  if (leader) position.store(state);
  return true;
}

// One position. `clamped`: beta is not 0 (uniform graph, analytic or denoise). `chunks` has room
// for one double per chunk.
template <class T, bool clamped, bool filtered, class Block>
SEDD_HOST_DEVICE void reverse_row(Block& block, ReverseShared& shared, double* chunks,
                                  const ReverseArguments& in, int64_t row) {
  const ReversePosition position(in, row);
  if (block.thread() == 0) position.store(position.x_t());
  if (!position.may_move()) return;
  const ReverseRow<T> scores(in.log_score, in.scores, row);
  const int x_t = static_cast<int>(position.x_t());
  if (step_row<Compute<T>, false, clamped, filtered>(block, shared, chunks, position, scores,
                                                     x_t)) {
    return;
  }
  step_row<double, true, clamped, filtered>(block, shared, chunks, position, scores, x_t);
}

}  // namespace sedd
