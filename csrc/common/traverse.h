// How a block of threads reads a row of log scores.
//
// A row of 50,258 bf16 numbers need not begin at a multiple of 16 bytes. It is divided into chunk 0
// (the states before the first aligned one) and chunks of Row::kChunk states. Each warp reads its
// own chunks, in vectors of 16 bytes. A row that is not contiguous is divided in the same way, with
// an empty chunk 0, and read state by state.
//
// Where a gradient is written and its row is aligned differently from the scores (padded scores, a
// view), the gradient's alignment decides: narrow stores go to L2 one by one, but the rest of a
// cache line that a narrow load fetches is in L1 for the next load.
#pragma once

#include "block.h"

namespace sedd {

struct Layout {  // of a (B, L, dim) tensor; strides in elements
  int64_t length, dim;
  int64_t stride_batch, stride_length, stride_state;

  SEDD_HOST_DEVICE int64_t offset(int64_t row) const {
    return row / length * stride_batch + row % length * stride_length;
  }
};

// Elements before the first one at a multiple of 16 bytes.
template <class T>
SEDD_HOST_DEVICE int first_aligned(const T* data, int64_t dim) {
  const int over = static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % kWidth<T>);
  const int head = over ? kWidth<T> - over : 0;
  return head < dim ? head : static_cast<int>(dim);
}

// The largest power of two, up to 16, that divides the address.
SEDD_HOST_DEVICE inline int alignment(const void* address) {
  const unsigned last = static_cast<unsigned>(reinterpret_cast<uintptr_t>(address)) | 16;
  return static_cast<int>(last & (0 - last));
}

// `vectors`: how many each thread has in flight. A chunk is what a warp reads with them.
template <class T, int vectors>
struct Row {
  static constexpr int kChunk = kWarp * kWidth<T> * vectors;

  const T* data;
  int dim;
  int64_t stride;
  int head;   // states in chunk 0
  int bytes;  // of one load: the address after the head is a multiple of it; at most 16

  SEDD_HOST_DEVICE Row(const void* tensor, const Layout& layout, int64_t row)
      : data(static_cast<const T*>(tensor) + layout.offset(row)),
        dim(static_cast<int>(layout.dim)),
        stride(layout.stride_state),
        head(stride == 1 ? first_aligned(data, layout.dim) : 0),
        bytes(16) {}

  // Divides the row where the stores of a gradient are aligned.
  template <class G>
  SEDD_HOST_DEVICE void align_to(const G* gradient) {
    if (stride != 1 || reinterpret_cast<uintptr_t>(gradient + head) % 16 == 0) return;
    head = first_aligned(gradient, dim);
    bytes = alignment(data + head);
  }

  SEDD_HOST_DEVICE Compute<T> operator[](int y) const { return widen(data[y * stride]); }
  SEDD_HOST_DEVICE int chunks() const { return 1 + (dim - head + kChunk - 1) / kChunk; }
  SEDD_HOST_DEVICE int begin(int chunk) const { return chunk ? head + (chunk - 1) * kChunk : 0; }
  SEDD_HOST_DEVICE int end(int chunk) const {
    const int end = chunk ? begin(chunk) + kChunk : head;
    return end < dim ? end : dim;
  }
};

// Calls visit(y, l) with the scores l, a C[N], of the states y .. y + N - 1, and finish(chunk) in
// all lanes of a warp after its last state of a chunk. Reads state by state (N = 1).
template <class C, class Row, class Block, class Visit, class Finish>
SEDD_HOST_DEVICE void visit_states(Block& block, const Row& row, const Visit& visit,
                                   const Finish& finish) {
  for (int chunk = warp(block); chunk < row.chunks(); chunk += warps(block)) {
    const int end = row.end(chunk);
    SEDD_ROLLED
    for (int y = row.begin(chunk) + lane(block); y < end; y += kWarp) {
      C l[1] = {row[y]};
      visit(y, l);
    }
    finish(chunk);
  }
}

// Loads the vectors of a lane, one warp's width apart, in loads of `bytes` bytes.
template <int bytes, bool once, class T, int count>
SEDD_HOST_DEVICE void load_vectors(const T* from, Vector16 (&vectors)[count]) {
  SEDD_UNROLL
  for (int k = 0; k < count; ++k) {
    const T* at = from + k * kWarp * kWidth<T>;
    if constexpr (bytes == 16) {
      vectors[k] = load_vector<once>(at);
    } else {
      vectors[k] = load_pieces<bytes>(at);
    }
  }
}

// The same with `bytes` known at run time; all threads take the same branch.
template <bool once, class T, int count>
SEDD_HOST_DEVICE void load_vectors(const T* from, int bytes, Vector16 (&vectors)[count]) {
  if (bytes == 16) return load_vectors<16, once>(from, vectors);
  if constexpr (sizeof(T) <= 4) {
    if (bytes == 4) return load_vectors<4, once>(from, vectors);
  }
  if constexpr (sizeof(T) <= 2) {
    if (bytes == 2) return load_vectors<2, once>(from, vectors);
  }
  load_vectors<8, once>(from, vectors);
}

// visit_states in vectors, for a row of unit stride.
template <bool once, class T, int count, class Block, class Visit, class Finish>
SEDD_HOST_DEVICE void visit_vectors(Block& block, const Row<T, count>& row, const Visit& visit,
                                    const Finish& finish) {
  constexpr int width = kWidth<T>;
  const auto visit_one = [&](int y) {
    Compute<T> l[1] = {row[y]};
    visit(y, l);
  };
  if (warp(block) == warps(block) - 1) {  // the last warp has the fewest chunks
    if (lane(block) < row.head) visit_one(lane(block));
    finish(0);
  }
  for (int chunk = 1 + warp(block); chunk < row.chunks(); chunk += warps(block)) {
    const int first = row.begin(chunk) + lane(block) * width;
    if (row.begin(chunk) + row.kChunk <= row.dim) {
      Vector16 vectors[count];
      load_vectors<once>(row.data + first, row.bytes, vectors);
      SEDD_UNROLL
      for (int k = 0; k < count; ++k) {
        Compute<T> l[width];
        unpack(vectors[k], row.data, l);
        visit(first + k * kWarp * width, l);
      }
    } else {  // the last chunk
      SEDD_ROLLED
      for (int y = row.begin(chunk) + lane(block); y < row.dim; y += kWarp) visit_one(y);
    }
    finish(chunk);
  }
}

// Replaces the score of x_t if y <= x_t < y + N.
template <class C, int N>
SEDD_HOST_DEVICE void replace(C (&l)[N], int y, int x_t, C value) {
  if (static_cast<unsigned>(x_t - y) >= static_cast<unsigned>(N)) return;
  SEDD_UNROLL
  for (int j = 0; j < N; ++j) l[j] = y + j == x_t ? value : l[j];
}

// Pairwise sum: shorter dependency chains and a smaller error than a sequential one.
template <class C, int N>
SEDD_HOST_DEVICE C tree_sum(const C (&x)[N]) {
  C sums[N];
  SEDD_UNROLL
  for (int j = 0; j < N; ++j) sums[j] = x[j];
  SEDD_UNROLL
  for (int width = N / 2; width; width /= 2) {
    SEDD_UNROLL
    for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

}  // namespace sedd
