// The passes of a softmax over a row of a linear head's output: f = row + bias, or softcap *
// tanh(that / softcap), and -inf where the bias is -inf (a state of probability 0).
#pragma once

#include "lanes.h"
#include "rows.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

// tanh(x). exp(2x) - 1 has lost its digits near 0: there, in float, by the series.
template <class C>
SEDD_INLINE typename Lanes<C>::vec tanh_lanes(typename Lanes<C>::vec x) {
  typedef typename Lanes<C>::vec vec;
  const vec e = exp_lanes(2 * x);
  const vec t = 1 - 2 / (e + 1);
  if constexpr (same<C, double>) return t;
  const vec q = x * x;
  const vec series =
      x + x * q * (C(-1.0 / 3) + q * (C(2.0 / 15) + q * (C(-17.0 / 315) + q * C(62.0 / 2835))));
  return q < C(0.09) ? series : t;
}

// f of some states of a row, and its slope in the raw score.
template <class C, bool capped, class T, class W>
struct HeadOutput {
  typedef typename Lanes<C>::vec vec;
  const T* row;
  const W* bias;
  C softcap;

  template <class Count>
  SEDD_INLINE vec operator()(int64_t y, Count count) const {
    const vec b = load_some<C>(bias + y, count);
    const vec f = load_some<C>(row + y, count) + b;
    const vec infinite = vec{} - C(__builtin_inf());  // also where the score is NaN
    if constexpr (!capped) return b == infinite ? infinite : f;
    return b == infinite ? infinite : softcap * tanh_lanes<C>(f * (1 / softcap));
  }
  SEDD_INLINE vec slope(vec f) const {
    const vec t = f * (1 / softcap);
    return 1 - t * t;
  }
};

// Calls run(output) with or without the softcap.
template <class C, class T, class W, class Run>
SEDD_INLINE auto with_output(const void* row, const void* bias, double softcap, const Run& run) {
  const T* scores = static_cast<const T*>(row);
  const W* b = static_cast<const W*>(bias);
  if (softcap != 0) return run(HeadOutput<C, true, T, W>{scores, b, C(softcap)});
  return run(HeadOutput<C, false, T, W>{scores, b, C(1)});
}

// The largest f of n states, ignoring NaN; -inf if there is none.
template <class C, class Output>
SEDD_INLINE double largest_output(const Output& output, int64_t n) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const vec none = vec{} - C(__builtin_inf());
  vec most = none;
  int64_t y = 0;
  for (; y + width <= n; y += width) most = larger(output(y, Whole<width>()), most);
  if (const int rest = static_cast<int>(n - y)) {
    most = larger(first_lanes<C>(output(y, rest), rest, -C(__builtin_inf())), most);
  }
  double result = -__builtin_inf();
  for (int j = 0; j < width; ++j) result = most[j] > result ? most[j] : result;
  return result;
}

// The sum of exp(f - shift), which is stored, times f's slope if `sloped`, unless `out` is
// NoGradient.
template <bool sloped, class C, bool capped, class T, class W, class G>
SEDD_INLINE double exp_outputs(const HeadOutput<C, capped, T, W>& output, G* out, int64_t n,
                               C shift) {
  typedef typename Lanes<C>::vec vec;
  const auto map = [=](int64_t y, auto count) SEDD_INLINE_LAMBDA { return output(y, count); };
  const auto visit = [=](int64_t y, auto count, vec f, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    const vec e = exp_lanes(f - shift);
    sums.first += some_lanes<C>(e, count);
    if constexpr (!same<G, NoGradient>) {
      if constexpr (capped && sloped) {
        // 0 times the slope of an f of -inf would be NaN.
        store_some<C, false>(out + y, e > 0 ? e * output.slope(f) : e, count);
      } else {
        store_some<C, false>(out + y, e, count);
      }
    }
  };
  return sum_states<C, kLongRounding<G>>(output.row, n, 0, map, visit).first;
}

// With d = f - shift: the sums of exp(d), of d exp(d), and of exp(d * inverse_temperature).
template <class C, class Output>
SEDD_INLINE SoftmaxSums softmax_sums(const Output& output, int64_t n, C shift,
                                     C inverse_temperature) {
  typedef typename Lanes<C>::vec vec;
  const vec least = vec{} - C(1e4);  // exp is 0, and 0 times d no NaN
  const auto distance = [=](int64_t y, auto count)
                            SEDD_INLINE_LAMBDA { return larger(least, output(y, count) - shift); };
  const auto visit = [=](int64_t, auto count, vec d, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    const vec e = some_lanes<C>(exp_lanes(d), count);
    sums.first += e;
    sums.second += e * d;
  };
  const Totals totals = sum_states<C, false>(output.row, n, 0, distance, visit);
  if (inverse_temperature == 1) return {totals.first, totals.second, totals.first};
  const auto tempered = [=](int64_t, auto count, vec d, LaneSums<C>& sums) SEDD_INLINE_LAMBDA {
    sums.first += some_lanes<C>(exp_lanes(d * inverse_temperature), count);
  };
  // As far as it is: at a high temperature exp is not 0 there.
  const auto apart = [=](int64_t y, auto count)
                         SEDD_INLINE_LAMBDA { return output(y, count) - shift; };
  const Totals others = sum_states<C, false>(output.row, n, 0, apart, tempered);
  return {totals.first, totals.second, others.first};
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
