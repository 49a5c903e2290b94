// The pass of row_sums over a row of scores: sums of f(z) and f'(z), z = a * exp(l) + b, and the
// gradient row grad_scale * f'(z) * a * exp(l).
#pragma once

#include "lanes.h"
#include "rows.h"

namespace {

using sedd::Term;
using sedd::TermSums;

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

// One vector of a row, of which the first `count` elements are states.
template <Term term, class T, class C, class G>
SEDD_INLINE void term_lanes(const T* row, G* grad, int count, const TermNumbers<C>& numbers,
                            typename Lanes<C>::vec& value, typename Lanes<C>::vec& slope) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const bool whole = count == width;
  const vec l = whole ? load<C>(row) : load_tail<C>(row, count);
  const vec moving = numbers.a * exp_lanes(l);
  const vec z = moving + numbers.b;
  vec f = term_value<term>(z), df = term_slope<term>(z);
  if constexpr (!same<G, NoGradient>) {
    const vec g = numbers.grad_scale * df * moving;
    if (whole) {
      store<C>(grad, g);
    } else {
      store_tail<C>(grad, g, count);
    }
  }
  if (!whole) {
    for (int j = count; j < width; ++j) f[j] = df[j] = 0;
  }
  value += f;
  slope += df;
}

// Sums of a term over n states, blocked as in sum_row.
template <Term term, class T, class C, class G>
SEDD_INLINE TermSums term_row(const T* row, G* grad, int64_t n, TermNumbers<C> numbers) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  TermSums sums = {0, 0};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    const int64_t whole = end - (end - begin) % width;
    vec value = {}, slope = {};
    for (int64_t y = begin; y < whole; y += width) {
      term_lanes<term, T, C, G>(row + y, grad + y, width, numbers, value, slope);
    }
    if (const int rest = static_cast<int>(end - whole)) {
      term_lanes<term, T, C, G>(row + whole, grad + whole, rest, numbers, value, slope);
    }
    sums.value += total<C>(value);
    sums.slope += total<C>(slope);
  }
  return sums;
}

template <class T, class C, class G>
SEDD_INLINE TermSums term_of(Term term, const T* row, G* grad, int64_t n, TermNumbers<C> numbers) {
  if (term == Term::affine) return term_row<Term::affine, T, C, G>(row, grad, n, numbers);
  if (term == Term::square) return term_row<Term::square, T, C, G>(row, grad, n, numbers);
  return term_row<Term::log, T, C, G>(row, grad, n, numbers);
}

}  // namespace
