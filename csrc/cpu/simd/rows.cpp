// The row functions of rows.h. Compiled once per instruction set (setup.py passes the flags and
// SEDD_ISA). With SEDD_ONLY_BFLOAT16, only those of bfloat16 rows: the set differs from another one
// in the conversion to bfloat16 alone.
#include "rows.h"

#include "entropy_lanes.h"
#include "philox_lanes.h"
#include "softmax_lanes.h"
#include "term_lanes.h"
#include "weight_lanes.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

template <class T, class C, class Fp32>
struct Row {
  static Sums sums(const void* row, int64_t n) {
    return sum_row<C, false>(static_cast<const T*>(row), static_cast<NoGradient*>(nullptr), n, C(0),
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

  // Whether stores past the caches are compiled: not on the exact path, which is rare.
  static constexpr bool kStreams = same<C, float> || same<T, double>;

  template <class G>
  static Sums with_gradient(const void* row, void* grad, int64_t n, double a, double b,
                            bool stream) {
    const T* scores = static_cast<const T*>(row);
    G* out = static_cast<G*>(grad);
    if constexpr (kStreams) {
      if (stream) return sum_row<C, true>(scores, out, n, C(a), C(b));
    }
    return sum_row<C, false>(scores, out, n, C(a), C(b));
  }

  static Sums head_sums(const void* row, const void* bias, int64_t n) {
    return head_row<C>(static_cast<const T*>(row), static_cast<const Fp32*>(bias),
                       static_cast<NoGradient*>(nullptr), static_cast<Fp32*>(nullptr), n, C(0),
                       C(0));
  }

  static Sums head_gradient(const void* row, const void* bias, void* grad, void* columns, int64_t n,
                            double a, double b) {
    return head_row<C>(static_cast<const T*>(row), static_cast<const Fp32*>(bias),
                       static_cast<T*>(grad), static_cast<Fp32*>(columns), n, C(a), C(b));
  }

  static Sums head_fp32_gradient(const void* row, const void* bias, void* grad, void* columns,
                                 int64_t n, double a, double b) {
    return head_row<C>(static_cast<const T*>(row), static_cast<const Fp32*>(bias),
                       static_cast<Fp32*>(grad), static_cast<Fp32*>(columns), n, C(a), C(b));
  }

  static double head_max(const void* row, const void* bias, int64_t n, double softcap) {
    return with_output<C, T, Fp32>(row, bias, softcap, [=](const auto& output) SEDD_INLINE_LAMBDA {
      return largest_output<C>(output, n);
    });
  }

  static double head_output(const void* row, const void* bias, int64_t y, double softcap) {
    return with_output<C, T, Fp32>(row, bias, softcap, [=](const auto& output) SEDD_INLINE_LAMBDA {
      return static_cast<double>(output(y, 1)[0]);
    });
  }

  static double head_exp(const void* row, const void* bias, void* out, int64_t n, double shift,
                         double softcap, bool sloped) {
    return with_output<C, T, Fp32>(row, bias, softcap, [=](const auto& output) SEDD_INLINE_LAMBDA {
      if (!out) return exp_outputs<false>(output, static_cast<NoGradient*>(nullptr), n, C(shift));
      T* to = static_cast<T*>(out);
      return sloped ? exp_outputs<true>(output, to, n, C(shift))
                    : exp_outputs<false>(output, to, n, C(shift));
    });
  }

  static SoftmaxSums head_softmax(const void* row, const void* bias, int64_t n, double shift,
                                  double inverse_temperature, double softcap) {
    return with_output<C, T, Fp32>(row, bias, softcap, [=](const auto& output) SEDD_INLINE_LAMBDA {
      return softmax_sums<C>(output, n, C(shift), C(inverse_temperature));
    });
  }

  static double term_sum(const void* row, int64_t n, Term term, double a, double b) {
    return term_sum_of<C>(term, static_cast<const T*>(row), n, {C(a), C(b), C(0)});
  }

  static TermSums term_gradient(const void* row, void* grad, int64_t n, Term term, double a,
                                double b, double grad_scale, bool stream) {
    const T* scores = static_cast<const T*>(row);
    T* out = static_cast<T*>(grad);
    const TermNumbers<C> numbers = {C(a), C(b), C(grad_scale)};
    if constexpr (kStreams) {
      if (stream) return term_gradient_of<true>(term, scores, out, n, numbers);
    }
    return term_gradient_of<false>(term, scores, out, n, numbers);
  }

  static void zero(void* grad, int64_t bytes, bool stream) {
    char* out = static_cast<char*>(grad);
    if (!stream) {
      memset(out, 0, bytes);
      return;
    }
    const uintptr_t over = reinterpret_cast<uintptr_t>(out) % kVectorBytes;
    const int64_t gap = over ? kVectorBytes - over : 0;
    const int64_t head = gap < bytes ? gap : bytes;
    memset(out, 0, head);
    int64_t at = head;
    for (; at + kVectorBytes <= bytes; at += kVectorBytes) store_past_caches(out + at, Floats{});
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
    const double before = largest<C>(scores, skip);
    const double after = largest<C>(scores + skip + 1, n - skip - 1);
    return before > after ? before : after;
  }

  static double chunk_weights(const void* row, int64_t n, int64_t skip, Weights w, double* out) {
    const T* scores = static_cast<const T*>(row);
    return with_weights<C>(w, [=](const auto& weigh) SEDD_INLINE_LAMBDA {
      return sum_chunks<C>(scores, n, skip, weigh, out);
    });
  }

  static int64_t walk(const void* row, int64_t begin, int64_t end, int64_t skip, Weights w,
                      double share) {
    return walk_chunk<C>(static_cast<const T*>(row), begin, end, skip, w, share);
  }

  static void probs(const void* row, void* probs, int64_t n, Weights w, double scale) {
    store_weights<C>(static_cast<const T*>(row), static_cast<Fp32*>(probs), n, w, C(scale));
  }

  static constexpr RowFunctions functions() {
    return {sums,
            sums_and_gradient,
            sums_and_fp32_gradient,
            head_sums,
            head_gradient,
            head_fp32_gradient,
            head_max,
            head_output,
            head_exp,
            head_softmax,
            term_sum,
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

#if defined(SEDD_ONLY_BFLOAT16)

extern const RowFunctions bfloat16_rows;
const RowFunctions bfloat16_rows = Row<BFloat16, float, float>::functions();

#else

extern const RowTable table;
const RowTable table = {
    {Row<float, float, float>::functions(), Row<BFloat16, float, float>::functions(),
     Row<Half, float, float>::functions(), Row<double, double, double>::functions()},
    {Row<float, double, float>::functions(), Row<BFloat16, double, float>::functions(),
     Row<Half, double, float>::functions(), Row<double, double, double>::functions()},
    fill_uniforms,
};

#endif

}  // namespace SEDD_ISA
}  // namespace sedd
