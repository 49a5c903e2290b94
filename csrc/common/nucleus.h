// The smallest score in the nucleus of a row (top-p sampling).
//
// The nucleus is the smallest set of largest scores whose weights sum to at least top_p of the
// total. Its smallest score is found by bisection over all values of the score's type, with a sum
// over the row for each. Nothing is sorted, and equal scores are all kept or all removed.
#pragma once

#include <math.h>
#include <stdint.h>

#include "numbers.h"

namespace sedd {

// The ordinal of a value among all values of its type (an order-preserving map to integers), and
// the value with a given ordinal.
SEDD_HOST_DEVICE inline int64_t ordinal(float x) {
  const int32_t bits = bit_copy<int32_t>(x);
  return bits ^ (bits >> 31 & INT32_MAX);
}
SEDD_HOST_DEVICE inline int64_t ordinal(double x) {
  const int64_t bits = bit_copy<int64_t>(x);
  return bits ^ (bits >> 63 & INT64_MAX);
}
SEDD_HOST_DEVICE inline float value_at(int64_t ordinal, float) {
  const int32_t bits = static_cast<int32_t>(ordinal);
  return bit_copy<float>(bits ^ (bits >> 31 & INT32_MAX));
}
SEDD_HOST_DEVICE inline double value_at(int64_t ordinal, double) {
  return bit_copy<double>(ordinal ^ (ordinal >> 63 & INT64_MAX));
}

// How many of the last bits are 0 in every bfloat16 or float16 once it is converted to float.
constexpr int kSpareBFloat16 = 16, kSpareHalf = 13;

// The largest value v with sum(v) >= enough, where sum(v) is the weight of all scores >= v and
// `largest` is the largest score of the row. Only values whose last `spare` bits are 0 are
// candidates, which saves `spare` steps of the bisection.
template <class V, class Sum>
SEDD_HOST_DEVICE double nucleus(double largest, double enough, int spare, const Sum& sum) {
  // In the ordinal of a negative number those bits are 1.
  const auto value = [&](int64_t at) {
    const int64_t rest = at < 0 ? (int64_t{1} << spare) - 1 : 0;
    return value_at(at * (int64_t{1} << spare) + rest, V());
  };
  int64_t low = ordinal(static_cast<V>(-HUGE_VAL)) >> spare;
  int64_t high = ordinal(static_cast<V>(largest)) >> spare;
  while (low < high) {
    const uint64_t gap = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const int64_t middle = low + static_cast<int64_t>(gap / 2 + gap % 2);
    if (sum(value(middle)) >= enough) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return value(low);
}

}  // namespace sedd
