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

// The largest V from which on the weights, `sum(V)`, reach `enough`; `largest` is the row's.
template <class V, class Sum>
SEDD_HOST_DEVICE double nucleus(double largest, double enough, const Sum& sum) {
  int64_t low = place(static_cast<V>(-HUGE_VAL)), high = place(static_cast<V>(largest));
  while (low < high) {
    const uint64_t gap = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const int64_t middle = low + static_cast<int64_t>(gap / 2 + gap % 2);
    if (sum(value_at(middle, V())) >= enough) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return value_at(low, V());
}

}  // namespace sedd
