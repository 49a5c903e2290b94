// Helpers of every launch: the number of threads, and error messages.
#pragma once

#include <algorithm>

#include "common/limits.h"
#include "operations.h"

namespace sedd {

// CUDA keeps an error until it is read. It is read here, so that the next launch does not report
// it.
inline Message error_message(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

inline Message too_large(int64_t rows, int64_t dim) {
  if (rows > kMaxRows) return "more than 2,147,483,647 positions";
  return dim > kMaxStates ? "more than 1,073,741,824 states" : nullptr;
}

// A multiple of a warp: as many threads as read the whole row in one iteration, at most `most`.
template <class Row>
int threads_for(int64_t dim, int most) {
  const int64_t warps = (dim + Row::kChunk - 1) / Row::kChunk;
  return static_cast<int>(std::clamp<int64_t>(warps * kWarp, kWarp, most));
}

}  // namespace sedd
