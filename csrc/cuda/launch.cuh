// What every launch needs: the number of threads, and CUDA's error in words.
#pragma once

#include <algorithm>

#include "common/limits.h"
#include "operations.h"

namespace sedd {

// CUDA keeps an error until it is asked for: the next launch is not to report this one.
inline Message in_words(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

inline Message too_large(int64_t rows, int64_t dim) {
  if (rows > kMostRows) return "more than 2,147,483,647 positions";
  return dim > kMostStates ? "more than 1,073,741,824 states" : nullptr;
}

// Enough for one trip of every warp, in whole warps.
template <class Row>
int threads_for(int64_t dim, int most) {
  const int64_t warps = (dim + Row::kChunk - 1) / Row::kChunk;
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, most));
}

}  // namespace sedd
