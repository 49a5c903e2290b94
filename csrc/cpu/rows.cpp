// Row functions, compiled once for every instruction set (setup.py passes the flags and SEDD_ISA).
#include "rows.h"

#include "lanes.h"

namespace {

using sedd::kChunk;
using sedd::Sums;
using sedd::Weights;

constexpr int64_t kBlock = 2048;  // states summed in lanes before they are added in double

template <class C>
SEDD_INLINE double total(typename Lanes<C>::vec v, int n = Lanes<C>::width) {
  double sum = 0;
  for (int j = 0; j < n; ++j) sum += v[j];
  return sum;
}

// Reads fewer than a vector's worth of elements; the rest are 0.
template <class C, class T>
SEDD_INLINE typename Lanes<C>::vec load_tail(const T* p, int n) {
  T buffer[Lanes<C>::width] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load<C>(static_cast<const T*>(buffer));
}

template <class C, class T>
SEDD_INLINE void store_tail(T* p, typename Lanes<C>::vec v, int n) {
  T buffer[Lanes<C>::width];
  store<C>(buffer, v);
  memcpy(p, buffer, n * sizeof(T));
}

struct NoGradient {};

// Calls visit(first state, lanes) for whole vectors in blocks and once for the tail.
template <class T, class C, class G>
SEDD_INLINE Sums sum_row(const T* row, G* grad, int64_t n, C a, C b) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  constexpr bool with_gradient = !__is_same(G, NoGradient);
  Sums sums = {0, 0};
  const int64_t whole = n - n % width;
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = begin + kBlock < whole ? begin + kBlock : whole;
    vec sum_exp = {}, sum_log = {};
    for (int64_t y = begin; y < end; y += width) {
      const vec l = load<C>(row + y);
      const vec e = exp_lanes(l);
      sum_exp += e;
      sum_log += l;
      if constexpr (with_gradient) store<C>(grad + y, a * e - b);
    }
    sums.exp += total<C>(sum_exp);
    sums.log += total<C>(sum_log);
  }
  if (const int rest = static_cast<int>(n - whole)) {
    const vec l = load_tail<C>(row + whole, rest);
    const vec e = exp_lanes(l);
    sums.exp += total<C>(e, rest);
    sums.log += total<C>(l, rest);
    if constexpr (with_gradient) store_tail<C>(grad + whole, a * e - b, rest);
  }
  return sums;
}

template <class C>
SEDD_INLINE typename Lanes<C>::vec weigh(typename Lanes<C>::vec l, C alpha, C beta, C shift) {
  typedef typename Lanes<C>::vec vec;
  const vec w = alpha * exp_lanes(l - shift) + beta;
  return w < vec{} ? vec{} : w;  // keeps NaN
}

template <class T, class C>
SEDD_INLINE double sum_weights(const T* row, int64_t n, C alpha, C beta, C shift) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const int64_t whole = n - n % width;
  vec sum = {};
  for (int64_t y = 0; y < whole; y += width) {
    sum += weigh<C>(load<C>(row + y), alpha, beta, shift);
  }
  double result = total<C>(sum);
  if (const int rest = static_cast<int>(n - whole)) {
    result += total<C>(weigh<C>(load_tail<C>(row + whole, rest), alpha, beta, shift), rest);
  }
  return result;
}

template <class T, class C, class Wide>
struct Row {
  static Sums sums(const void* row, int64_t n) {
    return sum_row<T, C>(static_cast<const T*>(row), static_cast<NoGradient*>(nullptr), n, C(0),
                         C(0));
  }

  static Sums sums_and_gradient(const void* row, void* grad, int64_t n, double a, double b) {
    return sum_row<T, C>(static_cast<const T*>(row), static_cast<T*>(grad), n, C(a), C(b));
  }

  static Sums sums_and_wide_gradient(const void* row, void* grad, int64_t n, double a, double b) {
    return sum_row<T, C>(static_cast<const T*>(row), static_cast<Wide*>(grad), n, C(a), C(b));
  }

  static double get(const void* row, int64_t y) {
    return load_tail<C>(static_cast<const T*>(row) + y, 1)[0];
  }

  static void set(void* grad, int64_t y, double value, bool wide) {
    const typename Lanes<C>::vec v = typename Lanes<C>::vec{} + C(value);
    if (wide) {
      store_tail<C>(static_cast<Wide*>(grad) + y, v, 1);
    } else {
      store_tail<C>(static_cast<T*>(grad) + y, v, 1);
    }
  }

  static double max(const void* row, int64_t n, int64_t skip) {
    double result = -__builtin_inf();
    for (int64_t y = 0; y < n; ++y) {
      const double l = get(row, y);
      if (y != skip && !(l <= result)) result = l;  // takes NaN, and then keeps it
      if (result != result) break;
    }
    return result;
  }

  static double chunk_weights(const void* row, int64_t n, int64_t skip, Weights w, double* out) {
    const T* scores = static_cast<const T*>(row);
    const C alpha = C(w.alpha), beta = C(w.beta), shift = C(w.shift);
    double sum = 0;
    for (int64_t begin = 0; begin < n; begin += kChunk) {
      const int64_t end = begin + kChunk < n ? begin + kChunk : n;
      double chunk;
      if (skip < begin || skip >= end) {
        chunk = sum_weights<T, C>(scores + begin, end - begin, alpha, beta, shift);
      } else {
        chunk = sum_weights<T, C>(scores + begin, skip - begin, alpha, beta, shift) +
                sum_weights<T, C>(scores + skip + 1, end - skip - 1, alpha, beta, shift);
      }
      *out++ = chunk;
      sum += chunk;
    }
    return sum;
  }

  static int64_t walk(const void* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                      double target) {
    constexpr int width = Lanes<C>::width;
    const T* scores = static_cast<const T*>(row);
    double sum = 0;
    int64_t last = -1;
    for (int64_t y = begin; y < end; y += width) {
      const int count = static_cast<int>(end - y < width ? end - y : width);
      const auto weights =
          weigh<C>(load_tail<C>(scores + y, count), C(w.alpha), C(w.beta), C(w.shift));
      for (int j = 0; j < count; ++j) {
        if (y + j == skip || !(weights[j] > 0)) continue;
        last = y + j;
        sum += weights[j];
        if (target < sum) return last;
      }
    }
    return last;
  }

  static void probs(const void* row, void* probs, int64_t n, Weights w, double scale) {
    constexpr int width = Lanes<C>::width;
    const T* scores = static_cast<const T*>(row);
    Wide* out = static_cast<Wide*>(probs);
    for (int64_t y = 0; y < n; y += width) {
      const int count = static_cast<int>(n - y < width ? n - y : width);
      const auto weights =
          weigh<C>(load_tail<C>(scores + y, count), C(w.alpha), C(w.beta), C(w.shift));
      store_tail<C>(out + y, weights * C(scale), count);
    }
  }

  static constexpr sedd::RowFunctions functions() {
    return {sums, sums_and_gradient, sums_and_wide_gradient, max, chunk_weights, walk, get, set,
            probs};
  }
};

}  // namespace

namespace sedd {
namespace SEDD_ISA {

extern const RowTable table;
const RowTable table = {
    {Row<float, float, float>::functions(), Row<BFloat16, float, float>::functions(),
     Row<Half, float, float>::functions(), Row<double, double, double>::functions()},
    {Row<float, double, float>::functions(), Row<BFloat16, double, float>::functions(),
     Row<Half, double, float>::functions(), Row<double, double, double>::functions()},
};

}  // namespace SEDD_ISA
}  // namespace sedd
