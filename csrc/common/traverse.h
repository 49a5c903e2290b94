// How a block reads a row of log scores.
//
// A row of 50,258 bf16 numbers begins anywhere within 16 bytes. It is cut into an edge (the states
// before the first aligned one: chunk 0) and chunks, of Row::kChunk states, which warps read in
// vectors of 16 bytes, each warp its own chunk. A row whose states are not neighbours in memory is
// cut alike, with an empty edge, and read one by one.
//
// Where a gradient is written and its row is not aligned as the scores are (padded scores, a view
// that begins anywhere), the gradient's alignment decides: narrow stores go to L2 one by one, while
// what a narrow load leaves of a line is in L1 for the next.
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

// `vectors`: how many every thread has in flight. A chunk is what a warp then reads.
template <class T, int vectors>
struct Row {
  static constexpr int kChunk = kWarp * kWidth<T> * vectors;

  const T* data;
  int dim;
  int64_t stride;
  int head;   // states in chunk 0
  int bytes;  // of the loads: what the address after the head is a multiple of, 16 at most

  SEDD_HOST_DEVICE Row(const void* tensor, const Layout& layout, int64_t row)
      : data(static_cast<const T*>(tensor) + layout.offset(row)),
        dim(static_cast<int>(layout.dim)),
        stride(layout.stride_state),
        head(stride == 1 ? first_aligned(data, layout.dim) : 0),
        bytes(16) {}

  // Cut where the stores of a gradient are aligned.
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

// Calls visit(y, l) for the scores l, a C[N], of the states y .. y + N - 1, and finish(chunk) in
// all lanes of a warp when it is through with one. One by one.
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

// The vectors of a lane, a warp's width apart, in loads of so many bytes.
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

// The same where only the row knows how many; the branch is the same in every thread.
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

// The same in vectors, for a row of unit stride.
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

// Replaces the score of x_t, where it is among these.
template <class C, int N>
SEDD_HOST_DEVICE void replace(C (&l)[N], int y, int x_t, C value) {
  if (static_cast<unsigned>(x_t - y) >= static_cast<unsigned>(N)) return;
  SEDD_UNROLL
  for (int j = 0; j < N; ++j) l[j] = y + j == x_t ? value : l[j];
}

// Sums by halves: shorter chains, and a smaller error, than one after the other.
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
