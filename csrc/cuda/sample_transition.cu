// Noising of clean tokens, one thread per token.
#include "launch.cuh"

namespace sedd {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    sample_transition_kernel(const __grid_constant__ TransitionArguments in) {
  const int64_t count = in.batch * in.length;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    noise_token(in, i);
  }
}

}  // namespace

Message sample_transition(const TransitionArguments& arguments, int device, Stream stream) {
  const int64_t count = arguments.batch * arguments.length;
  if (count == 0) return nullptr;
  if (Message error = error_message(cudaSetDevice(device))) return error;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + 255) / kThreads, kMaxRows));
  sample_transition_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  return error_message(cudaGetLastError());
}

Message unsupported(int device) {
  if (Message error = error_message(cudaSetDevice(device))) return error;
  cudaFuncAttributes attributes;
  return error_message(cudaFuncGetAttributes(&attributes, sample_transition_kernel));
}

}  // namespace sedd
