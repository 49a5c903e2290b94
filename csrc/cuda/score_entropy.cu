// Score entropy and its gradient, one block of threads per position. Compiled once for each dtype
// of the scores (setup.py passes SEDD_TYPE). csrc/common/entropy_row.h has everything but the
// launch.
#include "block.cuh"
#include "launch.cuh"

namespace sedd {
namespace {

constexpr int kThreads = 512;
// Blocks that must fit onto a multiprocessor at a time: the most for which no register spills.
template <class T, class G>
constexpr int kBlocks = (kHasGradient<G> ? 2 : 3) - (sizeof(T) == 8);

template <class T, class G, bool logs>
__global__ void __launch_bounds__(kThreads, kBlocks<T, G>)
    score_entropy_kernel(const __grid_constant__ EntropyArguments in) {
  __shared__ EntropyShared shared;
  CudaBlock block;
  entropy_row<T, G, logs>(block, shared, in, blockIdx.x);
}

template <class T, class G, bool logs>
Message launch(const EntropyCall& call, Stream stream) {
  const int threads = threads_for<EntropyRow<T>>(call.arguments.scores.dim, kThreads);
  const auto blocks = static_cast<unsigned>(call.rows);
  score_entropy_kernel<T, G, logs>
      <<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(call.arguments);
  return error_message(cudaGetLastError());
}

// Only the loss of the uniform graph contains the sum of the scores.
template <class T, class G>
Message launch(const EntropyCall& call, Stream stream) {
  const bool logs = call.arguments.process.graph == Graph::uniform && call.arguments.loss;
  return logs ? launch<T, G, true>(call, stream) : launch<T, G, false>(call, stream);
}

}  // namespace

template <>
Message launch_entropy<SEDD_TYPE>(const EntropyCall& call, Stream stream) {
  using T = SEDD_TYPE;
  if (!call.arguments.grad) return launch<T, NoGradient>(call, stream);
  if constexpr (std::is_same<T, Half>::value) {
    if (call.grad_fp32) return launch<T, float>(call, stream);
  }
  return launch<T, T>(call, stream);
}

}  // namespace sedd
