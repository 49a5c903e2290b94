// The passes of a reverse step over a row of scores: weights summed by chunk, searched and stored.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace {

using sedd::Weights;

// The weights of a vector of scores, without temperature and top-p.
template <class C>
struct PlainWeights {
  C beta, shift;

  explicit PlainWeights(Weights w) : beta(C(w.beta)), shift(C(w.shift)) {}
  SEDD_INLINE typename Lanes<C>::vec operator()(typename Lanes<C>::vec l) const {
    typedef typename Lanes<C>::vec vec;
    const vec w = exp_lanes(l - shift) + beta;
    return w < vec{} ? vec{} : w;  // keeps NaN
  }
};

// The same with a temperature, and 0 below `least` (top-p).
template <class C>
struct FilteredWeights {
  C beta, shift, inverse_temperature, least;

  explicit FilteredWeights(Weights w)
      : beta(C(w.beta)),
        shift(C(w.shift)),
        inverse_temperature(C(w.inverse_temperature)),
        least(C(w.least)) {}
  SEDD_INLINE typename Lanes<C>::vec operator()(typename Lanes<C>::vec l) const {
    typedef typename Lanes<C>::vec vec;
    const vec w = exp_lanes((l - shift) * inverse_temperature) + beta;
    return (w < vec{}) | (l < vec{} + least) ? vec{} : w;
  }
};

inline bool is_filtered(Weights w) {
  return w.inverse_temperature != 1 || w.least > -__builtin_inf();
}

// The largest of n scores, ignoring NaN.
template <class T, class C>
SEDD_INLINE double largest(const T* row, int64_t n) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const int64_t whole = n - n % width;
  vec most = vec{} - C(__builtin_inf());
  for (int64_t y = 0; y < whole; y += width) {
    const vec l = load<C>(row + y);
    most = l > most ? l : most;
  }
  const int rest = static_cast<int>(n - whole);
  const vec tail = load_tail<C>(row + whole, rest);
  double result = -__builtin_inf();
  for (int j = 0; j < width; ++j) {
    if (most[j] > result) result = most[j];
    if (j < rest && tail[j] > result) result = tail[j];
  }
  return result;
}

template <class T, class C, class Weigh>
SEDD_INLINE double sum_weights(const T* row, int64_t n, Weigh weigh) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const int64_t whole = n - n % width;
  vec sum = {};
  for (int64_t y = 0; y < whole; y += width) sum += weigh(load<C>(row + y));
  double result = total<C>(sum);
  if (const int rest = static_cast<int>(n - whole)) {
    result += total<C>(weigh(load_tail<C>(row + whole, rest)), rest);
  }
  return result;
}

template <class T, class C, class Weigh>
SEDD_INLINE double sum_chunks(const T* row, int64_t n, int64_t skip, Weigh weigh, double* out) {
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += sedd::kChunk) {
    const int64_t end = begin + sedd::kChunk < n ? begin + sedd::kChunk : n;
    double chunk;
    if (skip < begin || skip >= end) {
      chunk = sum_weights<T, C>(row + begin, end - begin, weigh);
    } else {
      chunk = sum_weights<T, C>(row + begin, skip - begin, weigh) +
              sum_weights<T, C>(row + skip + 1, end - skip - 1, weigh);
    }
    *out++ = chunk;
    sum += chunk;
  }
  return sum;
}

template <class T, class C, class Weigh>
SEDD_INLINE int64_t walk_chunk(const T* row, int64_t begin, int64_t end, int64_t skip, Weigh weigh,
                               double share) {
  constexpr int width = Lanes<C>::width;
  C weights[sedd::kChunk + width];
  double total = 0, sum = 0;
  for (int64_t y = begin; y < end; y += width) {
    const int count = static_cast<int>(end - y < width ? end - y : width);
    const auto some = weigh(load_tail<C>(row + y, count));
    for (int j = 0; j < count; ++j) {
      weights[y - begin + j] = y + j == skip || !(some[j] > 0) ? C(0) : some[j];
      total += weights[y - begin + j];
    }
  }
  int64_t last = -1;
  for (int64_t y = begin; y < end; ++y) {
    if (!(weights[y - begin] > 0)) continue;
    last = y;
    sum += weights[y - begin];
    if (share * total < sum) break;
  }
  return last;
}

template <class T, class C, class Fp32, class Weigh>
SEDD_INLINE void store_weights(const T* row, Fp32* out, int64_t n, Weigh weigh, C scale) {
  constexpr int width = Lanes<C>::width;
  for (int64_t y = 0; y < n; y += width) {
    const int count = static_cast<int>(n - y < width ? n - y : width);
    store_tail<C>(out + y, weigh(load_tail<C>(row + y, count)) * scale, count);
  }
}

}  // namespace
