// The functions on blocks of head.h. Compiled once per instruction set, as rows.cpp.
#include "head.h"

#include "products.h"
#include "softmax_lanes.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

// Calls run(a null pointer to the element type of a dtype).
template <class Run>
SEDD_INLINE auto with_element(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::bfloat16:
      return run(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return run(static_cast<Half*>(nullptr));
    case DType::float64:
      return run(static_cast<double*>(nullptr));
    default:
      return run(static_cast<float*>(nullptr));
  }
}

// f of raw scores of one state.
template <class C, bool capped>
struct StateOutput {
  typedef typename Lanes<C>::vec vec;
  C softcap, inverse;

  SEDD_INLINE vec operator()(vec raw, C bias) const {
    if (bias == -C(__builtin_inf())) return vec{} + bias;  // also where the score is NaN
    if constexpr (!capped) return raw + bias;
    return softcap * tanh_lanes<C>((raw + bias) * inverse);
  }
  // e times f's slope in the raw score. 0 times the slope of an f of -inf would be NaN.
  SEDD_INLINE vec sloped(vec e, vec f) const {
    const vec t = f * inverse;
    return e > 0 ? e * (1 - t * t) : e;
  }
};

template <class C, class Run>
SEDD_INLINE auto with_state_output(const BlockShape& shape, const Run& run) {
  if (shape.softcap == 0) return run(StateOutput<C, false>{C(1), C(1)});
  return run(StateOutput<C, true>{C(shape.softcap), C(1 / shape.softcap)});
}

// Sums of vectors in double: beside a number near 1 they keep one of 1e-16.
template <class C>
struct WideSum {
  static constexpr int parts = sizeof(double) / sizeof(C);
  Doubles sums[parts] = {};

  SEDD_INLINE void add(typename Lanes<C>::vec v) {
    typedef C part __attribute__((vector_size(sizeof v / parts)));
    part of[parts];
    memcpy(of, &v, sizeof v);
    for (int i = 0; i < parts; ++i) sums[i] += __builtin_convertvector(of[i], Doubles);
  }
  SEDD_INLINE double operator[](int j) const {
    return sums[j / Lanes<double>::width][j % Lanes<double>::width];
  }
};

template <class C>
SEDD_INLINE typename Lanes<C>::vec from_doubles(const double* p) {
  typename Lanes<C>::vec v = {};
  for (int j = 0; j < Lanes<C>::width; ++j) v[j] = C(p[j]);
  return v;
}

SEDD_INLINE double exp_of(double x) { return exp_lanes(Doubles{} + x)[0]; }

// What is subtracted from f where `largest` is its largest value.
SEDD_INLINE double as_shift(double largest) { return largest * 0 == 0 ? largest : 0; }

template <class C>
struct Head {
  typedef typename Lanes<C>::vec vec;
  static constexpr int width = Lanes<C>::width, panel = kPanel<C>;

  static void pack(const void* from, DType dtype, int64_t stride, int64_t column_stride,
                   int64_t rows, int64_t columns, void* panels) {
    with_element(dtype, [=](auto* element) {
      const auto* data = static_cast<decltype(element)>(const_cast<void*>(from));
      SEDD_ISA::pack<C>(data, stride, column_stride, rows, columns, static_cast<C*>(panels));
    });
  }

  static void pack_transposed(const void* from, int64_t rows, int64_t columns, void* panels) {
    SEDD_ISA::pack_transposed(static_cast<const C*>(from), rows, columns, static_cast<C*>(panels));
  }

  static void scores(const void* weight, const void* hidden, int64_t states, int64_t columns,
                     int64_t rows, void* block) {
    const Panels<C> left = {static_cast<const C*>(weight), states * panel};
    multiply(left, static_cast<const C*>(hidden), columns, static_cast<C*>(block), rows, states,
             rows, false);
  }

  static void add_to_rows(const void* block, const void* weight, int64_t states, int64_t columns,
                          int64_t rows, void* total) {
    const Columns<C> left = {static_cast<const C*>(block), rows};
    multiply(left, static_cast<const C*>(weight), states, static_cast<C*>(total), columns, rows,
             columns, true);
  }

  static void of_states(const void* block, const void* packed, int64_t states, int64_t columns,
                        int64_t rows, void* out, bool add) {
    const Rows<C> left = {static_cast<const C*>(block), rows};
    multiply_in_memory(left, static_cast<const C*>(packed), rows, static_cast<C*>(out), columns,
                       states, columns, add);
  }

  static void largest(const void* block, BlockShape shape, double* most) {
    const C* numbers = static_cast<const C*>(block);
    const C* bias = static_cast<const C*>(shape.bias);
    with_state_output<C>(shape, [=](const auto& output) SEDD_INLINE_LAMBDA {
      for (int64_t r = 0; r < shape.rows; r += width) {
        vec found = vec{} - C(__builtin_inf());
        for (int64_t y = 0; y < shape.states; ++y) {
          found = larger(output(load<C>(numbers + y * shape.rows + r), bias[y]), found);
        }
        for (int j = 0; j < width; ++j)
          most[r + j] = found[j] > most[r + j] ? found[j] : most[r + j];
      }
    });
  }

  static double output(const void* block, BlockShape shape, int64_t y, int64_t r) {
    const C bias = static_cast<const C*>(shape.bias)[y];
    const vec raw = vec{} + static_cast<const C*>(block)[y * shape.rows + r];
    return with_state_output<C>(shape, [=](const auto& output) SEDD_INLINE_LAMBDA {
      return static_cast<double>(output(raw, bias)[0]);
    });
  }

  static void exponentials(void* block, BlockShape shape, const double* shift, bool sloped,
                           double* sum_exp) {
    C* numbers = static_cast<C*>(block);
    const C* bias = static_cast<const C*>(shape.bias);
    with_state_output<C>(shape, [=](const auto& output) SEDD_INLINE_LAMBDA {
      for (int64_t r = 0; r < shape.rows; r += panel) {
        const vec apart[2] = {from_doubles<C>(shift + r), from_doubles<C>(shift + r + width)};
        vec sums[2] = {};
        for (int64_t y = 0; y < shape.states; ++y) {
          for (int i = 0; i < 2; ++i) {
            C* at = numbers + y * shape.rows + r + i * width;
            const vec f = output(load<C>(static_cast<const C*>(at)), bias[y]);
            const vec e = exp_lanes(f - apart[i]);
            sums[i] += e;
            store<C>(at, sloped && shape.softcap != 0 ? output.sloped(e, f) : e);
          }
        }
        for (int j = 0; sum_exp && j < panel; ++j) {
          sum_exp[r + j] += static_cast<double>(sums[j / width][j % width]);
        }
      }
    });
  }

  static void statistics(void* block, BlockShape shape, int64_t first, double inverse_temperature,
                         const RowStatistics& rows, double* groups) {
    C* numbers = static_cast<C*>(block);
    const C* bias = static_cast<const C*>(shape.bias);
    with_state_output<C>(shape, [&](const auto& output) SEDD_INLINE_LAMBDA {
      for (int64_t r = 0; r < shape.rows; r += width) {
        C* column = numbers + r;
        vec most = vec{} - C(__builtin_inf());
        for (int64_t y = 0; y < shape.states; ++y) {
          C* at = column + y * shape.rows;
          const vec f = output(load<C>(static_cast<const C*>(at)), bias[y]);
          store<C>(at, f);
          most = larger(f, most);
        }
        for (int j = 0; j < width; ++j) {
          raise_shift(rows, r + j, static_cast<double>(most[j]));
          if (rows.top && most[j] > rows.second[r + j]) {
            find_top(column + j, shape, first, rows, r + j);
          }
        }
        double* of_group = groups ? groups + r : nullptr;
        if (groups && inverse_temperature != 1) {
          add_tempered(column, shape, rows.shift + r, C(inverse_temperature), of_group);
          of_group = nullptr;
        }
        add_sums(column, shape, rows, r, of_group);
      }
    });
  }

  // Makes the sums of a row relative to the largest f so far.
  static void raise_shift(const RowStatistics& rows, int64_t r, double most) {
    rows.rescaled[r] = 1;
    if (!(most > rows.shift[r])) return;
    const bool first = rows.shift[r] == -__builtin_inf();  // the sums are 0
    const double apart = first ? 0 : as_shift(rows.shift[r]) - as_shift(most);
    const double factor = exp_of(apart);
    rows.weighted[r] = factor * (rows.weighted[r] + apart * rows.sum_exp[r]);
    rows.sum_exp[r] *= factor;
    rows.rescaled[r] = factor;
    rows.shift[r] = most;
  }

  // Few blocks have a state among the two largest.
  static void find_top(const C* column, BlockShape shape, int64_t first, const RowStatistics& rows,
                       int64_t r) {
    double top = rows.top[r], second = rows.second[r];
    for (int64_t y = 0; y < shape.states; ++y) {
      const double f = static_cast<double>(column[y * shape.rows]);
      if (f > top) {
        second = top;
        top = f;
        rows.argmax[r] = first + y;
      } else if (f > second) {
        second = f;
      }
    }
    rows.top[r] = top, rows.second[r] = second;
  }

  static SEDD_INLINE vec finite_shift(const double* largest) {
    vec v = {};
    for (int j = 0; j < width; ++j) v[j] = C(as_shift(largest[j]));
    return v;
  }

  static SEDD_INLINE void add_tempered(const C* column, BlockShape shape, const double* largest,
                                       C inverse_temperature, double* group) {
    const vec shift = finite_shift(largest);
    WideSum<C> sum;
    for (int64_t y = 0; y < shape.states; ++y) {
      const vec f = load<C>(column + y * shape.rows);
      sum.add(exp_lanes((f - shift) * inverse_temperature));
    }
    for (int j = 0; j < width; ++j) group[j] = sum[j];
  }

  static SEDD_INLINE void add_sums(C* column, BlockShape shape, const RowStatistics& rows,
                                   int64_t r, double* group) {
    const vec shift = finite_shift(rows.shift + r);
    const vec least = vec{} - C(1e4);  // exp is 0, and 0 times d no NaN
    WideSum<C> sum;
    vec weighted = {};
    for (int64_t y = 0; y < shape.states; ++y) {
      C* at = column + y * shape.rows;
      const vec d = larger(least, load<C>(static_cast<const C*>(at)) - shift);
      const vec e = exp_lanes(d);
      store<C>(at, e);
      sum.add(e);
      weighted += e * d;
    }
    for (int j = 0; j < width; ++j) {
      rows.sum_exp[r + j] += sum[j];
      rows.weighted[r + j] += static_cast<double>(weighted[j]);
      if (group) group[j] = sum[j];
    }
  }

  static void add_columns(const void* block, int64_t states, int64_t rows, const double* factor,
                          void* out) {
    const C* numbers = static_cast<const C*>(block);
    for (int64_t y = 0; y < states; ++y) {
      vec sum = {};
      for (int64_t r = 0; r < rows; r += width) {
        sum += load<C>(numbers + y * rows + r) * from_doubles<C>(factor + r);
      }
      static_cast<C*>(out)[y] += static_cast<C>(total(sum));
    }
  }

  static void scale_rows(void* of_rows, int64_t rows, int64_t columns, const double* factor) {
    for (int64_t r = 0; r < rows; ++r) {
      if (factor[r] == 1) continue;
      C* row = static_cast<C*>(of_rows) + r * columns;
      for (int64_t k = 0; k < columns; ++k) row[k] *= C(factor[r]);
    }
  }

  static void convert(const void* from, int64_t count, DType dtype, void* to) {
    const C* numbers = static_cast<const C*>(from);
    with_element(dtype, [=](auto* element) {
      convert_to(numbers, count, static_cast<decltype(element)>(to));
    });
  }
  template <class T>
  static void convert_to(const C* numbers, int64_t count, T* out) {
    int64_t i = 0;
    for (; i + width <= count; i += width) store<C>(out + i, load<C>(numbers + i));
    if (const int rest = static_cast<int>(count - i)) {
      store_tail<C>(out + i, load_tail<C>(numbers + i, rest), rest);
    }
  }
  static void convert_to(const C* numbers, int64_t count, double* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(numbers[i]);
  }

  static double dot(const void* weight, DType dtype, int64_t column_stride, const void* row,
                    int64_t columns) {
    const C* h = static_cast<const C*>(row);
    return with_element(dtype, [=](auto* element) {
      const auto* w = static_cast<decltype(element)>(const_cast<void*>(weight));
      if (column_stride != 1) {
        double sum = 0;
        for (int64_t k = 0; k < columns; ++k) {
          sum += static_cast<double>(load_tail<C>(w + k * column_stride, 1)[0] * h[k]);
        }
        return sum;
      }
      vec sums[4] = {};
      int64_t k = 0;
      for (; k + 4 * width <= columns; k += 4 * width) {
        for (int i = 0; i < 4; ++i)
          sums[i] += load<C>(w + k + i * width) * load<C>(h + k + i * width);
      }
      for (; k < columns; k += width) {
        const int some = columns - k < width ? static_cast<int>(columns - k) : width;
        sums[0] += load_tail<C>(w + k, some) * load_tail<C>(h + k, some);
      }
      return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
    });
  }

  static double get(const void* block, int64_t index) {
    return static_cast<double>(static_cast<const C*>(block)[index]);
  }
  static void set(void* block, int64_t index, double value) {
    static_cast<C*>(block)[index] = static_cast<C>(value);
  }

  static constexpr HeadFunctions functions() {
    return {panel,  pack,         pack_transposed, scores,      add_to_rows, of_states, largest,
            output, exponentials, statistics,      add_columns, scale_rows,  convert,   dot,
            get,    set};
  }
};

}  // namespace

extern const HeadFunctions head_table[2];
const HeadFunctions head_table[2] = {Head<float>::functions(), Head<double>::functions()};

}  // namespace SEDD_ISA
}  // namespace sedd
