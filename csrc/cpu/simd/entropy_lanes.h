// The pass of score entropy over a row of scores: sums of exp(l) and of l, and the gradient row
// a * exp(l) - b.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace {

using sedd::Sums;

// Fewer states than a vector has lanes.
template <class T, class C, class G>
SEDD_INLINE void sum_few(const T* row, G* grad, int n, C a, C b, Sums& sums) {
  const auto l = load_tail<C>(row, n);
  const auto e = exp_lanes(l);
  sums.exp += total<C>(e, n);
  sums.log += total<C>(l, n);
  if constexpr (!same<G, NoGradient>) store_tail<C>(grad, a * e - b, n);
}

// Elements before the first aligned one: streaming stores need aligned addresses.
template <class C, class G>
SEDD_INLINE int unaligned(const G* grad) {
  constexpr uintptr_t bytes = Lanes<C>::width * sizeof(G);
  return static_cast<int>((bytes - reinterpret_cast<uintptr_t>(grad) % bytes) % bytes / sizeof(G));
}

// Sums over n states. A block of kBlock states is summed in vector lanes, and blocks are added in
// double. With a gradient row, a * exp(l) - b is stored; with `Stream`, past the caches.
template <class T, class C, class G, bool Stream = false>
SEDD_INLINE Sums sum_row(const T* row, G* grad, int64_t n, C a, C b) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  Sums sums = {0, 0};
  if constexpr (Stream) {
    const int few = unaligned<C>(grad) < n ? unaligned<C>(grad) : static_cast<int>(n);
    sum_few<T, C, G>(row, grad, few, a, b, sums);
    row += few, grad += few, n -= few;
  }
  const int64_t whole = n - n % width;
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = begin + kBlock < whole ? begin + kBlock : whole;
    vec sum_exp = {}, sum_log = {};
    for (int64_t y = begin; y < end; y += width) {
      const vec l = load<C>(row + y);
      const vec e = exp_lanes(l);
      sum_exp += e;
      sum_log += l;
      if constexpr (Stream) {
        stream_lanes<C>(grad + y, a * e - b);
      } else if constexpr (!same<G, NoGradient>) {
        store<C>(grad + y, a * e - b);
      }
    }
    sums.exp += total<C>(sum_exp);
    sums.log += total<C>(sum_log);
  }
  sum_few<T, C, G>(row + whole, grad + whole, static_cast<int>(n - whole), a, b, sums);
  if constexpr (Stream) end_of_stream();
  return sums;
}

// One vector of a head's row, of which the first `count` elements are states.
template <class T, class C, class G, class W>
SEDD_INLINE void head_lanes(const T* row, const W* bias, G* grad, W* columns, int count, C a, C b,
                            typename Lanes<C>::vec& sum_exp, typename Lanes<C>::vec& sum_log) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const bool whole = count == width;
  vec l =
      whole ? load<C>(row) + load<C>(bias) : load_tail<C>(row, count) + load_tail<C>(bias, count);
  vec e = exp_lanes(l);
  if (!whole) {
    for (int j = count; j < width; ++j) e[j] = l[j] = 0;
  }
  sum_exp += e;
  sum_log += l;
  if constexpr (!same<G, NoGradient>) {
    const vec g = a * e - b;
    if (whole) {
      store<C>(grad, g);
      store<C>(columns, load<C>(static_cast<const W*>(columns)) + g);
    } else {
      store_tail<C>(grad, g, count);
      store_tail<C>(columns, load_tail<C>(static_cast<const W*>(columns), count) + g, count);
    }
  }
}

// sum_row for a row of a linear head: l = row + bias. The gradient is also added to `columns`.
template <class T, class C, class G, class W>
SEDD_INLINE Sums head_row(const T* row, const W* bias, G* grad, W* columns, int64_t n, C a, C b) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  Sums sums = {0, 0};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    const int64_t whole = end - (end - begin) % width;
    vec sum_exp = {}, sum_log = {};
    for (int64_t y = begin; y < whole; y += width) {
      head_lanes<T, C, G, W>(row + y, bias + y, grad + y, columns + y, width, a, b, sum_exp,
                             sum_log);
    }
    if (const int rest = static_cast<int>(end - whole)) {
      head_lanes<T, C, G, W>(row + whole, bias + whole, grad + whole, columns + whole, rest, a, b,
                             sum_exp, sum_log);
    }
    sums.exp += total<C>(sum_exp);
    sums.log += total<C>(sum_log);
  }
  return sums;
}

}  // namespace
