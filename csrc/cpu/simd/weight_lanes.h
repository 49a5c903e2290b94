// The passes of a reverse step over a row of scores: weights summed by chunk, searched and stored.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

// The weights of a vector of scores where all terms of `Weights` but exp(l) are neutral.
template <class C>
struct ExpWeights {
  SEDD_INLINE typename Lanes<C>::vec operator()(typename Lanes<C>::vec l) const {
    return exp_lanes(l);
  }
};

// The same with `shift` and `beta`.
template <class C>
struct ClampedWeights {
  C beta, shift;

  SEDD_INLINE typename Lanes<C>::vec operator()(typename Lanes<C>::vec l) const {
    typedef typename Lanes<C>::vec vec;
    return larger(vec{}, exp_lanes(l - shift) + beta);  // keeps NaN
  }
};

// All terms: also a temperature, and 0 below `least` (top-p).
template <class C>
struct FilteredWeights {
  C beta, shift, inverse_temperature, least;

  SEDD_INLINE typename Lanes<C>::vec operator()(typename Lanes<C>::vec l) const {
    typedef typename Lanes<C>::vec vec;
    const vec w = larger(vec{}, exp_lanes((l - shift) * inverse_temperature) + beta);
    return l < least ? vec{} : w;
  }
};

template <class C>
SEDD_INLINE FilteredWeights<C> filtered(Weights w) {
  return {C(w.beta), C(w.shift), C(w.inverse_temperature), C(w.least)};
}

// Calls run(weigh) with the cheapest function for these weights.
template <class C, class Run>
SEDD_INLINE double with_weights(Weights w, const Run& run) {
  if (w.inverse_temperature != 1 || w.least > -__builtin_inf()) return run(filtered<C>(w));
  if (w.beta != 0 || w.shift != 0) return run(ClampedWeights<C>{C(w.beta), C(w.shift)});
  return run(ExpWeights<C>());
}

// The largest of n scores, ignoring NaN.
template <class C, class T>
SEDD_INLINE double largest(const T* row, int64_t n) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  vec most = vec{} - C(__builtin_inf());
  int64_t y = 0;
  for (; y + width <= n; y += width) most = larger(load<C>(row + y), most);
  double result = -__builtin_inf();
  for (int j = 0; j < width; ++j) result = most[j] > result ? most[j] : result;
  const int rest = static_cast<int>(n - y);
  const vec tail = load_tail<C>(row + y, rest);
  for (int j = 0; j < rest; ++j) result = tail[j] > result ? tail[j] : result;
  return result;
}

template <class C, class T, class Weigh>
SEDD_INLINE double sum_weights(const T* row, int64_t n, const Weigh& weigh) {
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count)
                       SEDD_INLINE_LAMBDA { return weigh(load_some<C>(row + y, count)); };
  const auto visit = [=](int64_t, auto count, vec w, LaneSums<C>& sums)
                         SEDD_INLINE_LAMBDA { sums.first += some_lanes<C>(w, count); };
  return sum_states<C, false>(row, n, 0, map, visit).first;
}

template <class C, class T, class Weigh>
SEDD_INLINE double sum_chunks(const T* row, int64_t n, int64_t skip, const Weigh& weigh,
                              double* out) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = begin + kChunk < n ? begin + kChunk : n;
    // A chunk with `skip` is summed in two parts; the others have an empty second one.
    const bool split = skip >= begin && skip < end;
    double chunk = sum_weights<C>(row + begin, (split ? skip : end) - begin, weigh);
    if (split) chunk += sum_weights<C>(row + skip + 1, end - skip - 1, weigh);
    *out++ = chunk;
    sum += chunk;
  }
  return sum;
}

// The weights of at most a chunk of states in double, 0 for `skip` and for NaN.
template <class C, class T>
SEDD_INLINE void list_weights(const T* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                              double* weights) {
  constexpr int width = Lanes<C>::width;
  const FilteredWeights<C> weigh = filtered<C>(w);
  for (int64_t y = begin; y < end; y += width) {
    const int count = static_cast<int>(end - y < width ? end - y : width);
    const auto some = weigh(load_tail<C>(row + y, count));
    for (int j = 0; j < count; ++j) weights[y - begin + j] = some[j] > 0 ? some[j] : C(0);
  }
  if (skip >= begin && skip < end) weights[skip - begin] = 0;
}

template <class C, class T>
SEDD_INLINE int64_t walk_chunk(const T* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                               double share) {
  double weights[kChunk];
  list_weights<C>(row, begin, end, skip, w, weights);
  double total = 0, sum = 0;
  for (int64_t i = 0; i < end - begin; ++i) total += weights[i];
  int64_t last = -1;
  for (int64_t i = 0; i < end - begin; ++i) {
    if (!(weights[i] > 0)) continue;
    last = begin + i;
    sum += weights[i];
    if (share * total < sum) break;
  }
  return last;
}

template <class C, class T, class Fp32>
SEDD_INLINE void store_weights(const T* row, Fp32* out, int64_t n, Weights w, C scale) {
  const FilteredWeights<C> weigh = filtered<C>(w);
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count)
                       SEDD_INLINE_LAMBDA { return weigh(load_some<C>(row + y, count)) * scale; };
  const auto visit = [=](int64_t y, auto count, vec p, LaneSums<C>&)
                         SEDD_INLINE_LAMBDA { store_some<C, false>(out + y, p, count); };
  sum_states<C, false>(row, n, 0, map, visit);
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
