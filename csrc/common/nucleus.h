// The least score of a nucleus (top-p), by bisection over the values of its type: no sorting, and
// any number of equal scores is kept or left out together.
#pragma once

#include <math.h>
#include <stdint.h>

#include "numbers.h"

namespace sedd {

// Where a value lies among all of its type, as a whole number, and the value there.
SEDD_HOST_DEVICE inline int64_t place(float x) {
  const int32_t bits = bit_copy<int32_t>(x);
  return bits ^ (bits >> 31 & INT32_MAX);
}
SEDD_HOST_DEVICE inline int64_t place(double x) {
  const int64_t bits = bit_copy<int64_t>(x);
  return bits ^ (bits >> 63 & INT64_MAX);
}
SEDD_HOST_DEVICE inline float value_at(int64_t place, float) {
  const int32_t bits = static_cast<int32_t>(place);
  return bit_copy<float>(bits ^ (bits >> 31 & INT32_MAX));
}
SEDD_HOST_DEVICE inline double value_at(int64_t place, double) {
  return bit_copy<double>(place ^ (place >> 63 & INT64_MAX));
}

// The last bits that are 0 in every number of 16 bits once it is a float.
constexpr int kSpareBFloat16 = 16, kSpareHalf = 13;

// The largest V from which on the weights, `sum(V)`, reach `enough`; `largest` is the row's. Only
// values whose last `spare` bits are 0 are looked at: so many halvings less.
template <class V, class Sum>
SEDD_HOST_DEVICE double nucleus(double largest, double enough, int spare, const Sum& sum) {
  // Of a negative number those bits are 1 at its place.
  const auto value = [&](int64_t at) {
    const int64_t rest = at < 0 ? (int64_t{1} << spare) - 1 : 0;
    return value_at(at * (int64_t{1} << spare) + rest, V());
  };
  int64_t low = place(static_cast<V>(-HUGE_VAL)) >> spare;
  int64_t high = place(static_cast<V>(largest)) >> spare;
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
