// The Block of csrc/common/block.h for CUDA threads.
#pragma once

namespace sedd {

struct CudaBlock {
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() { __syncthreads(); }
  template <class V>
  __device__ V shuffle(V value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
  }
};

}  // namespace sedd
