// Matrix products of a linear head, for one thread. A library packs both operands of a product into
// the order in which its innermost loop reads them, the large weight again for every few rows. Here
// outputs are formed states by rows, so that a block of the weight is the left operand, of which
// single numbers are read; it is packed once for all products of the block.
//
// A right operand is in panels: (columns / kPanel, depth, kPanel) numbers, so that a step of the
// innermost loop reads the next kPanel.
#pragma once

#include "lanes.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

// Columns of a panel, two vectors, and rows of a tile of the result: its sums stay in registers.
template <class C>
constexpr int kPanel = 2 * Lanes<C>::width;
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
// Steps after which sums are stored: that much of a panel is in the first cache.
constexpr int64_t kDepth = 256;

// The left operands, by where the element (i, k) is.
template <class C>
struct Panels {  // data[k / kPanel * segment + i * kPanel + k % kPanel]
  static constexpr int64_t step = 1, row = kPanel<C>;
  const C* data;
  int64_t segment;

  SEDD_INLINE Panels from(int64_t i, int64_t k) const {
    return {data + k / kPanel<C> * segment + i * row, segment};
  }
};
template <class C>
struct Rows {  // data[i * row + k]
  static constexpr int64_t step = 1, segment = kPanel<C>;
  const C* data;
  int64_t row;

  SEDD_INLINE Rows from(int64_t i, int64_t k) const { return {data + i * row + k, row}; }
};
template <class C>
struct Columns {  // data[k * step + i]
  static constexpr int64_t row = 1;
  const C* data;
  int64_t step, segment = kPanel<C> * step;

  SEDD_INLINE Columns from(int64_t i, int64_t k) const { return {data + k * step + i, step}; }
};

// A tile of the result, = or += the product of some rows of `a` and a panel.
template <int rows, class C, class A>
SEDD_INLINE void multiply_tile(const A& a, const C* panel, int64_t depth, C* out, int64_t stride,
                               bool add) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  vec sums[rows][2] = {};
  if (add) {
    for (int i = 0; i < rows; ++i) {
      sums[i][0] = load<C>(static_cast<const C*>(out + i * stride));
      sums[i][1] = load<C>(static_cast<const C*>(out + i * stride + width));
    }
  }
  const C* segment = a.data;
  for (int64_t begin = 0; begin < depth; begin += kPanel<C>, segment += a.segment) {
    const int count = depth - begin < kPanel<C> ? static_cast<int>(depth - begin) : kPanel<C>;
    const C* at = segment;
    for (int k = 0; k < count; ++k, at += a.step, panel += kPanel<C>) {
      const vec first = load<C>(panel), second = load<C>(panel + width);
#pragma GCC unroll 12
      for (int i = 0; i < rows; ++i) {
        const C x = at[i * a.row];
        sums[i][0] += x * first;
        sums[i][1] += x * second;
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    store<C>(out + i * stride, sums[i][0]);
    store<C>(out + i * stride + width, sums[i][1]);
  }
}

// The same for a panel of which only `columns` belong to the result.
template <int rows, class C, class A>
SEDD_INLINE void multiply_part(const A& a, const C* panel, int64_t depth, C* out, int64_t stride,
                               bool add, int64_t columns) {
  if (columns >= kPanel<C>) return multiply_tile<rows>(a, panel, depth, out, stride, add);
  C tile[rows * kPanel<C>] = {};
  for (int i = 0; add && i < rows; ++i) {
    memcpy(tile + i * kPanel<C>, out + i * stride, columns * sizeof(C));
  }
  multiply_tile<rows>(a, panel, depth, tile, kPanel<C>, add);
  for (int i = 0; i < rows; ++i) {
    memcpy(out + i * stride, tile + i * kPanel<C>, columns * sizeof(C));
  }
}

// Calls run(i, Whole<rows>) for the tiles of so many rows: those of kTileRows, then smaller ones.
template <class Run>
SEDD_INLINE void for_tiles(int64_t rows, const Run& run) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) run(i, Whole<kTileRows>());
  for (; i + 3 <= rows; i += 3) run(i, Whole<3>());
  for (; i < rows; ++i) run(i, Whole<1>());
}

// out (rows, columns) = or += a (rows, depth) times panels (depth, columns). The result is in a
// cache, and so is a panel at a time.
template <class C, class A>
void multiply(const A& a, const C* panels, int64_t depth, C* out, int64_t stride, int64_t rows,
              int64_t columns, bool add) {
  int64_t k = 0;
  do {  // a result of depth 0 is 0
    const int64_t steps = depth - k < kDepth ? depth - k : kDepth;
    for (int64_t c = 0; c < columns; c += kPanel<C>) {
      const C* panel = panels + (c / kPanel<C> * depth + k) * kPanel<C>;
      for_tiles(rows, [=](int64_t i, auto count) SEDD_INLINE_LAMBDA {
        multiply_part<count>(a.from(i, k), panel, steps, out + i * stride + c, stride, add,
                             columns - c);
      });
    }
    k += kDepth, add = true;
  } while (k < depth);
}

// The same where the result is in memory, of which the next rows are fetched meanwhile: in the
// order of `multiply`, the product of 96 rows took 1.7 times as long (Zen 3).
template <class C, class A>
void multiply_in_memory(const A& a, const C* panels, int64_t depth, C* out, int64_t stride,
                        int64_t rows, int64_t columns, bool add) {
  int64_t k = 0;
  do {  // a result of depth 0 is 0
    const int64_t steps = depth - k < kDepth ? depth - k : kDepth;
    for_tiles(rows, [=](int64_t i, auto count) SEDD_INLINE_LAMBDA {
      for (int64_t c = 0; c < columns; c += kPanel<C>) {
        const C* panel = panels + (c / kPanel<C> * depth + k) * kPanel<C>;
        C* to = out + i * stride + c;
        for (int j = 0; j < count; ++j) __builtin_prefetch(to + (count + j) * stride, 1);
        multiply_part<count>(a.from(i, k), panel, steps, to, stride, add, columns - c);
      }
    });
    k += kDepth, add = true;
  } while (k < depth);
}

// Rows (rows, width) as panels (width / kPanel, rows, kPanel): a right operand of depth `rows`.
// What is missing of the last panel is 0.
template <class C, class T>
void pack(const T* from, int64_t stride, int64_t column_stride, int64_t rows, int64_t width,
          C* panels) {
  constexpr int lanes = Lanes<C>::width;
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = from + i * stride;
    for (int64_t p = 0; p < width; p += kPanel<C>) {
      C* out = panels + p * rows + i * kPanel<C>;
      if (column_stride == 1 && p + kPanel<C> <= width) {
        store<C>(out, load<C>(row + p));
        store<C>(out + lanes, load<C>(row + p + lanes));
        continue;
      }
      for (int64_t k = 0; k < kPanel<C>; ++k) {
        out[k] = p + k < width ? load_tail<C>(row + (p + k) * column_stride, 1)[0] : C(0);
      }
    }
  }
}

// The same of the transposed rows: panels (rows / kPanel, width, kPanel), depth `width`.
template <class C>
void pack_transposed(const C* from, int64_t rows, int64_t width, C* panels) {
  for (int64_t i = 0; i < rows; i += kPanel<C>) {
    for (int64_t k = 0; k < width; ++k) {
      for (int64_t j = 0; j < kPanel<C>; ++j) {
        *panels++ = i + j < rows ? from[(i + j) * width + k] : C(0);
      }
    }
  }
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
