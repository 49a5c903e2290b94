// The softmax of a linear head's output, block by block: the exponentials of a cross entropy, and
// the statistics of a denoising step. The caller (sedd_fast/backends/cpp) computes the matrix
// products.
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

const RowFunctions& row_functions(DType dtype) {
  return row_table().fast[static_cast<int>(dtype)];
}

const char* row_of(const HeadBlock& block, const char* data, int64_t r) {
  return data + r * block.stride * item_size(block.dtype);
}

// The two largest f so far and the state of the first, from a block that may hold one of them. Only
// pieces of it that do are read state by state.
void find_top(const HeadBlock& block, const RowFunctions& row, const char* scores, double softcap,
              double& top, double& second, int64_t& argmax) {
  constexpr int64_t piece = 64;
  const int64_t score_bytes = item_size(block.dtype), bias_bytes = score_bytes == 8 ? 8 : 4;
  for (int64_t begin = 0; begin < block.states; begin += piece) {
    const int64_t count = std::min(piece, block.states - begin);
    const char* from = scores + begin * score_bytes;
    const char* bias = static_cast<const char*>(block.bias) + begin * bias_bytes;
    if (!(row.head_max(from, bias, count, softcap) > second)) continue;
    for (int64_t y = 0; y < count; ++y) {
      const double f = row.head_output(from, bias, y, softcap);
      if (f > top) {
        second = top;
        top = f;
        argmax = block.first + begin + y;
      } else if (f > second) {
        second = f;
      }
    }
  }
}

}  // namespace

void linear_cross_entropy(const HeadBlock& block, const CrossEntropyRows& rows, double softcap,
                          bool first, int threads) {
  const RowFunctions& row = row_functions(block.dtype);
  parallel_for(block.rows, block.states, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const char* scores = row_of(block, block.scores, r);
      char* out = block.gradient ? const_cast<char*>(row_of(block, block.gradient, r)) : nullptr;
      if (first) {
        const double most = row.head_max(scores, block.bias, block.states, softcap);
        rows.shift[r] = std::isfinite(most) ? most : 0;
      }
      const int64_t y = rows.target[r] - block.first;
      const bool here = y >= 0 && y < block.states;
      if (here) {  // read before it is overwritten
        rows.f_target[r] = row.head_output(scores, block.bias, y, softcap);
        rows.e_target[r] = std::exp(rows.f_target[r] - rows.shift[r]);
      }
      const double sum =
          row.head_exp(scores, block.bias, out, block.states, rows.shift[r], softcap);
      if (rows.sum_exp) rows.sum_exp[r] += sum;
      if (here && out) row.set(out, y, 0, false);
    }
  });
}

void linear_denoise(const HeadBlock& block, const DenoiseRows& rows, double softcap,
                    double inverse_temperature, int threads) {
  const RowFunctions& row = row_functions(block.dtype);
  parallel_for(block.rows, block.states, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const char* scores = row_of(block, block.scores, r);
      const double most = row.head_max(scores, block.bias, block.states, softcap);
      const double shift = std::isfinite(most) ? most : 0;
      const SoftmaxSums sums = row.head_softmax(scores, block.bias, block.states, shift,
                                                inverse_temperature, softcap);
      rows.largest[r] = shift;
      rows.sum_exp[r] = sums.exp;
      rows.weighted[r] = sums.weighted;
      rows.tempered[r] = sums.tempered;
      // Few blocks have a state among the two largest.
      if (rows.top && most > rows.second[r]) {
        find_top(block, row, scores, softcap, rows.top[r], rows.second[r], rows.argmax[r]);
      }
    }
  });
}

}  // namespace sedd
