// Row functions, compiled once for every instruction set (setup.py passes the flags and SEDD_ISA).
#include "rows.h"

#include "entropy_lanes.h"
#include "term_lanes.h"
#include "weight_lanes.h"

namespace {

template <class T, class C, class Wide>
struct Row {
  static Sums sums(const void* row, int64_t n) {
    return sum_row<T, C>(static_cast<const T*>(row), static_cast<NoGradient*>(nullptr), n, C(0),
                         C(0));
  }

  static Sums sums_and_gradient(const void* row, void* grad, int64_t n, double a, double b,
                                bool stream) {
    return with_gradient<T>(row, grad, n, a, b, stream);
  }

  static Sums sums_and_wide_gradient(const void* row, void* grad, int64_t n, double a, double b,
                                     bool stream) {
    return with_gradient<Wide>(row, grad, n, a, b, stream);
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
    return head_row<T, C, NoGradient, Wide>(static_cast<const T*>(row),
                                            static_cast<const Wide*>(bias), nullptr, nullptr, n,
                                            C(0), C(0));
  }

  static Sums head_gradient(const void* row, const void* bias, void* grad, void* columns, int64_t n,
                            double a, double b) {
    return head_row<T, C, T, Wide>(static_cast<const T*>(row), static_cast<const Wide*>(bias),
                                   static_cast<T*>(grad), static_cast<Wide*>(columns), n, C(a),
                                   C(b));
  }

  static Sums head_wide_gradient(const void* row, const void* bias, void* grad, void* columns,
                                 int64_t n, double a, double b) {
    return head_row<T, C, Wide, Wide>(static_cast<const T*>(row), static_cast<const Wide*>(bias),
                                      static_cast<Wide*>(grad), static_cast<Wide*>(columns), n,
                                      C(a), C(b));
  }

  static TermSums term_sums(const void* row, int64_t n, Term term, double a, double b) {
    return term_of<T, C, NoGradient>(term, static_cast<const T*>(row), nullptr, n,
                                     {C(a), C(b), C(0)});
  }

  static TermSums term_gradient(const void* row, void* grad, int64_t n, Term term, double a,
                                double b, double lift) {
    return term_of<T, C, T>(term, static_cast<const T*>(row), static_cast<T*>(grad), n,
                            {C(a), C(b), C(lift)});
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

  static void set(void* grad, int64_t y, double value, bool wide) {
    const typename Lanes<C>::vec v = typename Lanes<C>::vec{} + C(value);
    if (wide) {
      store_tail<C>(static_cast<Wide*>(grad) + y, v, 1);
    } else {
      store_tail<C>(static_cast<T*>(grad) + y, v, 1);
    }
  }

  static double get_wide(const void* numbers, int64_t y) {
    return static_cast<const Wide*>(numbers)[y];
  }

  static void add_wide(void* numbers, int64_t y, double value) {
    static_cast<Wide*>(numbers)[y] += static_cast<Wide>(value);
  }

  static void accumulate(void* to, const void* from, int64_t n) {
    for (int64_t y = 0; y < n; ++y) static_cast<Wide*>(to)[y] += static_cast<const Wide*>(from)[y];
  }

  static double max(const void* row, int64_t n, int64_t skip) {
    const T* scores = static_cast<const T*>(row);
    const double before = largest<T, C>(scores, skip);
    const double after = largest<T, C>(scores + skip + 1, n - skip - 1);
    return before > after ? before : after;
  }

  static double chunk_weights(const void* row, int64_t n, int64_t skip, Weights w, double* out) {
    const T* scores = static_cast<const T*>(row);
    return shaped(w) ? sum_chunks<T, C>(scores, n, skip, Shaped<C>(w), out)
                     : sum_chunks<T, C>(scores, n, skip, Plain<C>(w), out);
  }

  static int64_t walk(const void* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                      double share) {
    return walk_chunk<T, C>(static_cast<const T*>(row), begin, end, skip, Shaped<C>(w), share);
  }

  static void probs(const void* row, void* probs, int64_t n, Weights w, double scale) {
    store_weights<T, C>(static_cast<const T*>(row), static_cast<Wide*>(probs), n, Shaped<C>(w),
                        C(scale));
  }

  static constexpr sedd::RowFunctions functions() {
    return {sums,
            sums_and_gradient,
            sums_and_wide_gradient,
            head_sums,
            head_gradient,
            head_wide_gradient,
            term_sums,
            term_gradient,
            zero,
            max,
            chunk_weights,
            walk,
            get,
            set,
            get_wide,
            add_wide,
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
