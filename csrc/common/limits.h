// What one launch can hold. sedd_fast/backends/cuda.py asks before it launches, so that another
// backend can take over; the launch checks again.
#pragma once

#include "dtype.h"
#include "reverse_row.h"

namespace sedd {

constexpr int64_t kMostRows = 2147483647;    // blocks of a grid
constexpr int64_t kMostStates = 1073741824;  // state numbers, and a chunk past them, are 32-bit
// Bytes of shared memory that a block has without asking: CUDA's limit on every GPU. Up to the
// device's own limit (227 KB on sm_90) a kernel has to ask.
constexpr int64_t kSharedUnasked = 48 << 10;

// Bytes of the chunks of a reverse step: a double for the edge and for every chunk after it.
template <class T>
constexpr int64_t chunk_bytes(int64_t dim) {
  return static_cast<int64_t>(sizeof(double)) * (2 + dim / ReverseRow<T>::kChunk);
}

// The most states of a reverse step where a block may have so many bytes of shared memory.
template <class T>
constexpr int64_t most_states(int64_t shared) {
  const int64_t doubles = (shared - static_cast<int64_t>(sizeof(ReverseShared))) / 8;
  const int64_t most = (doubles - 1) * ReverseRow<T>::kChunk - 1;
  return most < kMostStates ? most : kMostStates;
}

inline int64_t most_states(DType dtype, int64_t shared) {
  switch (dtype) {
    case DType::float32:
      return most_states<float>(shared);
    case DType::bfloat16:
      return most_states<BFloat16>(shared);
    case DType::float16:
      return most_states<Half>(shared);
    default:
      return most_states<double>(shared);
  }
}

}  // namespace sedd
