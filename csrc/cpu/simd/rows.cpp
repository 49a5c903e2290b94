// The row functions of rows.h. Compiled once per instruction set (setup.py passes the flags and
// SEDD_ISA).
#include "rows.h"

#include "entropy_lanes.h"
#include "term_lanes.h"
#include "weight_lanes.h"

namespace {

template <class T, class C, class Fp32>
struct Row {
  static Sums sums(const void* row, int64_t n) {
    return sum_row<T, C>(static_cast<const T*>(row), static_cast<NoGradient*>(nullptr), n, C(0),
                         C(0));
  }

  static Sums sums_and_gradient(const void* row, void* grad, int64_t n, double a, double b,
                                bool stream) {
    return with_gradient<T>(row, grad, n, a, b, stream);
  }

  static Sums sums_and_fp32_gradient(const void* row, void* grad, int64_t n, double a, double b,
                                     bool stream) {
    return with_gradient<Fp32>(row, grad, n, a, b, stream);
  }

  template <class G>
  static Sums with_gradient(const void* row, void* grad, int64_t n, double a, double b,
                            bool stream) {
    const T* scores = static_cast<const T*>(row);
    G* out = static_cast<G*>(grad);
    if constexpr (same<C, float> || same<T, double>) {  // not on the exact path
      if (stream) return sum_row<T, C, G, true>(scores, out, n, C(a), C(b));
    }
    return sum_row<T, C, G>(scores, out, n, C(a), C(b));
  }

  static Sums head_sums(const void* row, const void* bias, int64_t n) {
    return head_row<T, C, NoGradient, Fp32>(static_cast<const T*>(row),
                                            static_cast<const Fp32*>(bias), nullptr, nullptr, n,
                                            C(0), C(0));
  }

  static Sums head_gradient(const void* row, const void* bias, void* grad, void* columns, int64_t n,
                            double a, double b) {
    return head_row<T, C, T, Fp32>(static_cast<const T*>(row), static_cast<const Fp32*>(bias),
                                   static_cast<T*>(grad), static_cast<Fp32*>(columns), n, C(a),
                                   C(b));
  }

  static Sums head_fp32_gradient(const void* row, const void* bias, void* grad, void* columns,
                                 int64_t n, double a, double b) {
    return head_row<T, C, Fp32, Fp32>(static_cast<const T*>(row), static_cast<const Fp32*>(bias),
                                      static_cast<Fp32*>(grad), static_cast<Fp32*>(columns), n,
                                      C(a), C(b));
  }

  static TermSums term_sums(const void* row, int64_t n, Term term, double a, double b) {
    return term_of<T, C, NoGradient>(term, static_cast<const T*>(row), nullptr, n,
                                     {C(a), C(b), C(0)});
  }

  static TermSums term_gradient(const void* row, void* grad, int64_t n, Term term, double a,
                                double b, double grad_scale) {
    return term_of<T, C, T>(term, static_cast<const T*>(row), static_cast<T*>(grad), n,
                            {C(a), C(b), C(grad_scale)});
  }

  static void zero(void* grad, int64_t bytes, bool stream) {
    char* out = static_cast<char*>(grad);
    if (!stream) {
      memset(out, 0, bytes);
      return;
    }
    typedef uint8_t Line __attribute__((vector_size(64)));
    const int64_t gap = (64 - reinterpret_cast<uintptr_t>(out) % 64) % 64;
    const int64_t head = gap < bytes ? gap : bytes;
    memset(out, 0, head);
    int64_t at = head;
    for (; at + 64 <= bytes; at += 64) ::stream(out + at, Line{});
    memset(out + at, 0, bytes - at);
    end_of_stream();
  }

  static double get(const void* row, int64_t y) {
    return load_tail<C>(static_cast<const T*>(row) + y, 1)[0];
  }

  static void set(void* grad, int64_t y, double value, bool fp32) {
    const typename Lanes<C>::vec v = typename Lanes<C>::vec{} + C(value);
    if (fp32) {
      store_tail<C>(static_cast<Fp32*>(grad) + y, v, 1);
    } else {
      store_tail<C>(static_cast<T*>(grad) + y, v, 1);
    }
  }

  static double get_fp32(const void* numbers, int64_t y) {
    return static_cast<const Fp32*>(numbers)[y];
  }

  static void add_fp32(void* numbers, int64_t y, double value) {
    static_cast<Fp32*>(numbers)[y] += static_cast<Fp32>(value);
  }

  static void accumulate(void* to, const void* from, int64_t n) {
    for (int64_t y = 0; y < n; ++y) static_cast<Fp32*>(to)[y] += static_cast<const Fp32*>(from)[y];
  }

  static double max(const void* row, int64_t n, int64_t skip) {
    const T* scores = static_cast<const T*>(row);
    const double before = largest<T, C>(scores, skip);
    const double after = largest<T, C>(scores + skip + 1, n - skip - 1);
    return before > after ? before : after;
  }

  static double chunk_weights(const void* row, int64_t n, int64_t skip, Weights w, double* out) {
    const T* scores = static_cast<const T*>(row);
    return is_filtered(w) ? sum_chunks<T, C>(scores, n, skip, FilteredWeights<C>(w), out)
                          : sum_chunks<T, C>(scores, n, skip, PlainWeights<C>(w), out);
  }

  static int64_t walk(const void* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                      double share) {
    return walk_chunk<T, C>(static_cast<const T*>(row), begin, end, skip, FilteredWeights<C>(w),
                            share);
  }

  static void probs(const void* row, void* probs, int64_t n, Weights w, double scale) {
    store_weights<T, C>(static_cast<const T*>(row), static_cast<Fp32*>(probs), n,
                        FilteredWeights<C>(w), C(scale));
  }

  static constexpr sedd::RowFunctions functions() {
    return {sums,
            sums_and_gradient,
            sums_and_fp32_gradient,
            head_sums,
            head_gradient,
            head_fp32_gradient,
            term_sums,
            term_gradient,
            zero,
            max,
            chunk_weights,
            walk,
            get,
            set,
            get_fp32,
            add_fp32,
            accumulate,
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
