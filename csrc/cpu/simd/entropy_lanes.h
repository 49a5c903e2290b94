// The pass of score entropy over a row of scores: sums of exp(l) and of l, and the gradient row
// a * exp(l) - b.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

// Sums over n states. With a gradient row, a * exp(l) - b is stored.
template <class C, bool past_caches, class T, class G>
SEDD_INLINE Sums sum_row(const T* row, G* grad, int64_t n, C a, C b) {
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count)
                       SEDD_INLINE_LAMBDA { return exp_lanes(load_some<C>(row + y, count)); };
  const auto visit = [=](int64_t y, auto count, vec e, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    sums.first += some_lanes<C>(e, count);
    sums.second += load_some<C>(row + y, count);  // 0 in the lanes beyond `count`
    if constexpr (!same<G, NoGradient>) store_some<C, past_caches>(grad + y, a * e - b, count);
  };
  const int few = unaligned<C, past_caches>(grad, n);
  const Totals totals = sum_states<C, kLongRounding<G>>(n, few, map, visit);
  if constexpr (past_caches) end_of_stream();
  return {totals.first, totals.second};
}

// sum_row for a row of a linear head: l = row + bias. The gradient is also added to `columns`.
template <class C, class T, class G, class W>
SEDD_INLINE Sums head_row(const T* row, const W* bias, G* grad, W* columns, int64_t n, C a, C b) {
  typedef typename Lanes<C>::vec vec;
  const auto scores = [=](int64_t y, auto count) SEDD_INLINE_LAMBDA {
    return load_some<C>(row + y, count) + load_some<C>(bias + y, count);
  };
  const auto map = [=](int64_t y, auto count)
                       SEDD_INLINE_LAMBDA { return exp_lanes(scores(y, count)); };
  const auto visit = [=](int64_t y, auto count, vec e, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    sums.first += some_lanes<C>(e, count);
    sums.second += scores(y, count);  // the gradient may overwrite them
    if constexpr (!same<G, NoGradient>) {
      const vec g = a * e - b;
      const vec column = load_some<C>(static_cast<const W*>(columns + y), count);
      store_some<C, false>(grad + y, g, count);
      store_some<C, false>(columns + y, column + g, count);
    }
  };
  const Totals totals = sum_states<C, kLongRounding<G>>(n, 0, map, visit);
  return {totals.first, totals.second};
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
