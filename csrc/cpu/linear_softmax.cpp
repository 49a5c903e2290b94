// The softmax of a linear head's output, block by block: the exponentials of a cross entropy, and
// the statistics of a denoising step. The caller (sedd_fast/backends/cpp) computes the matrix
// products.
#include "operations.h"
#include "parallel.h"

namespace sedd {
namespace {

const RowFunctions& row_functions(DType dtype) { return row_table().fast[static_cast<int>(dtype)]; }

const char* row_of(const HeadBlock& block, const char* data, int64_t r) {
  return data + r * block.stride * item_size(block.dtype);
}

// Some neighbouring states of a row of a block.
struct Piece {
  const char* scores;
  const char* bias;
  int64_t states;

  Piece(const HeadBlock& block, const char* row, int64_t begin, int64_t count)
      : scores(row + begin * item_size(block.dtype)),
        bias(static_cast<const char*>(block.bias) +
             begin * (block.dtype == DType::float64 ? 8 : 4)),
        states(std::min(count, block.states - begin)) {}
};

// The two largest f so far and the state of the first, from a block that may hold one of them. Only
// pieces of it that do are read state by state.
void find_top(const HeadBlock& block, const RowFunctions& row, const char* scores, double softcap,
              double& top, double& second, int64_t& argmax) {
  constexpr int64_t size = 64;
  for (int64_t begin = 0; begin < block.states; begin += size) {
    const Piece piece(block, scores, begin, size);
    if (!(row.head_max(piece.scores, piece.bias, piece.states, softcap) > second)) continue;
    for (int64_t y = 0; y < piece.states; ++y) {
      const double f = row.head_output(piece.scores, piece.bias, y, softcap);
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
          row.head_exp(scores, block.bias, out, block.states, rows.shift[r], softcap, true);
      if (rows.sum_exp) rows.sum_exp[r] += sum;
      if (here && out) row.set(out, y, 0, false);
    }
  });
}

void linear_denoise(const HeadBlock& block, const DenoiseRows& rows, double softcap,
                    double inverse_temperature, int threads) {
  const RowFunctions& row = row_functions(block.dtype);
  const int64_t group = rows.groups ? rows.group : block.states;
  parallel_for(block.rows, block.states, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const char* scores = row_of(block, block.scores, r);
      const double most = row.head_max(scores, block.bias, block.states, softcap);
      const double shift = std::isfinite(most) ? most : 0;
      SoftmaxSums all = {0, 0, 0};
      for (int64_t y = 0, i = 0; y < block.states; y += group, ++i) {
        const Piece piece(block, scores, y, group);
        const SoftmaxSums sums = row.head_softmax(piece.scores, piece.bias, piece.states, shift,
                                                  inverse_temperature, softcap);
        all.exp += sums.exp;
        all.weighted += sums.weighted;
        if (rows.groups) rows.groups[r * rows.stride + i] = sums.tempered;
      }
      rows.largest[r] = most;  // -inf: no state has probability
      rows.sum_exp[r] = all.exp;
      rows.weighted[r] = all.weighted;
      // Few blocks have a state among the two largest.
      if (rows.top && most > rows.second[r]) {
        find_top(block, row, scores, softcap, rows.top[r], rows.second[r], rows.argmax[r]);
      }
      if (block.gradient) {
        char* out = const_cast<char*>(row_of(block, block.gradient, r));
        row.head_exp(scores, block.bias, out, block.states, shift, softcap, false);
      }
    }
  });
}

}  // namespace sedd
