// The largest sizes that one launch supports. sedd_fast.backends.cuda checks them before it
// launches, so that another backend can be used instead; the launch checks them again.
#pragma once

#include "dtype.h"
#include "reverse_row.h"

namespace sedd {

constexpr int64_t kMaxRows = 2147483647;    // blocks of a grid
constexpr int64_t kMaxStates = 1073741824;  // a state plus one chunk must fit into 32 bits
// Bytes of shared memory that a block may use by default, the same on every GPU. For more, up to
// the device's limit (227 KB on sm_90), a kernel must set an attribute first.
constexpr int64_t kDefaultShared = 48 << 10;

// Bytes for the chunk sums of a reverse step: a double for chunk 0 and for every chunk after it.
template <class T>
constexpr int64_t chunk_bytes(int64_t dim) {
  return static_cast<int64_t>(sizeof(double)) * (2 + dim / ReverseRow<T>::kChunk);
}

// The most states of a reverse step where a block has `shared` bytes of shared memory.
template <class T>
constexpr int64_t most_states(int64_t shared) {
  const int64_t doubles = (shared - static_cast<int64_t>(sizeof(ReverseShared))) / 8;
  const int64_t most = (doubles - 1) * ReverseRow<T>::kChunk - 1;
  return most < kMaxStates ? most : kMaxStates;
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
