// The functions on one block of a linear head's output, for one dtype and one instruction set.
//
// A block is states by rows: number (y, r) at y * rows + r, in C, float32 or float64. `rows` is a
// multiple of `panel`. Vectors lie across the rows, so that sums over states need no sums over
// lanes. csrc/cpu/head_products.cpp has the loops over blocks.
#pragma once

#include <stdint.h>

#include "common/dtype.h"

namespace sedd {

// Inputs of the functions on a block besides its numbers. f = number + bias, or softcap *
// tanh(that / softcap) unless softcap is 0, and -inf where the bias is.
struct BlockShape {
  int64_t states, rows;
  const void* bias;  // (states,), C
  double softcap;
};

// The statistics of rows, (rows,) each, to which blocks add. weighted and sum_exp are relative to
// the shift, the largest f so far; it rises from block to block, and they with it.
struct RowStatistics {
  double* shift;     // -inf while no state has probability; not subtracted while infinite
  double* sum_exp;   // sum of exp(f - shift)
  double* weighted;  // sum of (f - shift) exp(f - shift)
  double* top;       // the two largest f and the state of the first, or null
  double* second;
  int64_t* argmax;
  double* rescaled;  // what sums relative to the shift before are to be multiplied by
};

struct HeadFunctions {
  int64_t panel;  // columns of a panel of a right operand (products.h)
  // Rows (rows, width) of a dtype as panels of depth `rows`; the rows in C transposed, as panels of
  // depth `width`.
  void (*pack)(const void* from, DType dtype, int64_t stride, int64_t column_stride, int64_t rows,
               int64_t width, void* panels);
  void (*pack_transposed)(const void* from, int64_t rows, int64_t width, void* panels);
  // The three products: block = weight hidden^T, of packed operands; total (rows, width) += block^T
  // weight, of the packed weight, rows of a whole number of panels; out (states, width) = or +=
  // block times rows, of packed rows.
  void (*scores)(const void* weight, const void* hidden, int64_t states, int64_t width,
                 int64_t rows, void* block);
  void (*add_to_rows)(const void* block, const void* weight, int64_t states, int64_t width,
                      int64_t rows, void* total);
  void (*of_states)(const void* block, const void* packed, int64_t states, int64_t width,
                    int64_t rows, void* out, bool add);
  // most[r] becomes at least the largest f of the block.
  void (*largest)(const void* block, BlockShape shape, double* most);
  // f of one number.
  double (*output)(const void* block, BlockShape shape, int64_t y, int64_t r);
  // The block becomes exp(f - shift), if `sloped` times f's slope in the raw score; sum_exp, unless
  // null, += its sums before the slope.
  void (*exponentials)(void* block, BlockShape shape, const double* shift, bool sloped,
                       double* sum_exp);
  // Adds a block, whose first state is `first`, to the statistics. If `groups` is given, it becomes
  // the sums of exp((f - shift) / temperature) over the block. The block becomes exp(f - shift).
  void (*statistics)(void* block, BlockShape shape, int64_t first, double inverse_temperature,
                     const RowStatistics& rows, double* groups);
  // out[y] += the sum of block[y][r] factor[r].
  void (*add_columns)(const void* block, int64_t states, int64_t rows, const double* factor,
                      void* out);
  // rows[r] *= factor[r], (rows, width) in C.
  void (*scale_rows)(void* of_rows, int64_t rows, int64_t width, const double* factor);
  // C to another dtype; a sum of products, of a row of the weight and one in C.
  void (*convert)(const void* from, int64_t count, DType dtype, void* to);
  double (*dot)(const void* weight, DType dtype, int64_t column_stride, const void* row,
                int64_t width);
  double (*get)(const void* block, int64_t index);
  void (*set)(void* block, int64_t index, double value);
};

// Those for float64, or for float32, of the best instruction set of this processor.
const HeadFunctions& head_functions(DType dtype);

}  // namespace sedd
