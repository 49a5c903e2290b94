// The passes of row_sums over a row of scores: the sum of f(z), z = a * exp(l) + b, and the
// gradient row grad_scale * f'(z) * a * exp(l).
#pragma once

#include "lanes.h"
#include "rows.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

template <Term term, class V>
SEDD_INLINE V term_value(V z) {
  if constexpr (term == Term::affine) return z;
  if constexpr (term == Term::square) return z * z;
  if constexpr (term == Term::log) return log_lanes(z);
}

template <Term term, class V>
SEDD_INLINE V term_slope(V z) {
  if constexpr (term == Term::affine) return V{} + 1;
  if constexpr (term == Term::square) return 2 * z;
  if constexpr (term == Term::log) return 1 / z;
}

// Coefficients of a row's term, in the compute type.
template <class C>
struct TermNumbers {
  C a, b, grad_scale;
};

template <Term term, class C, class T>
SEDD_INLINE double term_sum(const T* row, int64_t n, TermNumbers<C> numbers) {
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count) SEDD_INLINE_LAMBDA {
    return numbers.a * exp_lanes(load_some<C>(row + y, count)) + numbers.b;
  };
  if constexpr (term == Term::log && same<C, float>) {
    const auto visit = [=](int64_t, auto count, vec z, LaneLogs& logs)
                           SEDD_INLINE_LAMBDA { logs.add_log(some_lanes<C>(z, count, 1)); };
    return sum_states<C, true, LaneLogs>(row, n, 0, map, visit).first;
  } else {
    const auto visit = [=](int64_t, auto count, vec z, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
      sums.first += some_lanes<C>(term_value<term>(z), count);
    };
    return sum_states<C, false>(row, n, 0, map, visit).first;
  }
}

template <Term term, bool past_caches, class C, class T>
SEDD_INLINE TermSums term_gradient(const T* row, T* grad, int64_t n, TermNumbers<C> numbers) {
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count) SEDD_INLINE_LAMBDA {
    return numbers.a * exp_lanes(load_some<C>(row + y, count));
  };
  const auto visit = [=](int64_t y, auto count, vec moving, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    const vec slope = term_slope<term>(moving + numbers.b);
    store_some<C, past_caches>(grad + y, numbers.grad_scale * slope * moving, count);
    sums.first += some_lanes<C>(moving, count);
    sums.second += some_lanes<C>(slope, count);
  };
  const int few = unaligned<C, past_caches>(grad, n);
  const Totals totals = sum_states<C, kLongRounding<T>>(row, n, few, map, visit);
  if constexpr (past_caches) end_of_stream();
  return {totals.first, totals.second};
}

template <class C, class T>
SEDD_INLINE double term_sum_of(Term term, const T* row, int64_t n, TermNumbers<C> numbers) {
  if (term == Term::affine) return term_sum<Term::affine>(row, n, numbers);
  if (term == Term::square) return term_sum<Term::square>(row, n, numbers);
  return term_sum<Term::log>(row, n, numbers);
}

template <bool past_caches, class C, class T>
SEDD_INLINE TermSums term_gradient_of(Term term, const T* row, T* grad, int64_t n,
                                      TermNumbers<C> numbers) {
  if (term == Term::affine) {
    return term_gradient<Term::affine, past_caches>(row, grad, n, numbers);
  }
  if (term == Term::square) {
    return term_gradient<Term::square, past_caches>(row, grad, n, numbers);
  }
  return term_gradient<Term::log, past_caches>(row, grad, n, numbers);
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
