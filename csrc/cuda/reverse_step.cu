// One reverse step, a block a position; compiled once for every type of the scores (setup.py passes
// SEDD_TYPE). Everything but the launch is csrc/common/reverse_row.h.
#include "block.cuh"
#include "launch.cuh"

namespace sedd {
namespace {

// A clamped distribution reads some rows twice, a temperature or top-p more often. What is in
// flight is to stay in the L2 cache meanwhile (50 MB on sm_90): two rows of 50,258 16-bit states a
// multiprocessor are 27 MB, and so is one of 32 bits. Two blocks rather than one of twice as many
// threads, so that one reads while the other reduces. Those that read once need no such care.
template <class T, bool clamped, bool shaped>
constexpr int kThreads = !clamped && !shaped ? 256
                         : sizeof(T) == 8    ? 512
                         : sizeof(T) == 4    ? (shaped ? 512 : 1024)
                                             : (shaped ? 256 : 512);
// Blocks on a multiprocessor that the registers must allow: the most without spills.
template <class T, bool clamped, bool shaped>
constexpr int kBlocks = !clamped && !shaped ? 4
                        : sizeof(T) == 2    ? 2
                                            : 1;

template <class T, bool clamped, bool shaped>
__global__ void __launch_bounds__(kThreads<T, clamped, shaped>, kBlocks<T, clamped, shaped>)
    reverse_step_kernel(const __grid_constant__ ReverseArguments in) {
  extern __shared__ double chunks[];
  __shared__ ReverseShared shared;
  CudaBlock block;
  reverse_row<T, clamped, shaped>(block, shared, chunks, in, blockIdx.x);
}

// Beyond 48 KB a kernel has to ask, on every device: for all that there is, so that no thread's
// smaller request undoes another's larger one. `fixed`: what the kernel has besides.
template <class Kernel>
Message ask_for_shared(Kernel kernel, int fixed, int64_t bytes) {
  if (fixed + bytes <= kSharedUnasked) return nullptr;
  int device = 0, most = 0;
  if (Message error = in_words(cudaGetDevice(&device))) return error;
  const auto limit = cudaDevAttrMaxSharedMemoryPerBlockOptin;
  if (Message error = in_words(cudaDeviceGetAttribute(&most, limit, device))) return error;
  if (fixed + bytes > most) return "more states than a block's shared memory has room for";
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  return in_words(cudaFuncSetAttribute(kernel, attribute, most - fixed));
}

template <class T, bool clamped, bool shaped>
Message launch(const ReverseCall& call, Stream stream) {
  const int64_t dim = call.arguments.scores.dim;
  const int threads = threads_for<ReverseRow<T>>(dim, kThreads<T, clamped, shaped>);
  const auto blocks = static_cast<unsigned>(call.rows);
  const int64_t chunks = chunk_bytes<T>(dim);
  const auto kernel = reverse_step_kernel<T, clamped, shaped>;
  if (Message error = ask_for_shared(kernel, sizeof(ReverseShared), chunks)) return error;
  kernel<<<blocks, threads, chunks, static_cast<cudaStream_t>(stream)>>>(call.arguments);
  return in_words(cudaGetLastError());
}

template <bool clamped>
Message launch_any(const ReverseCall& call, Stream stream) {
  return call.arguments.shaped() ? launch<SEDD_TYPE, clamped, true>(call, stream)
                                 : launch<SEDD_TYPE, clamped, false>(call, stream);
}

}  // namespace

template <>
Message launch_reverse<SEDD_TYPE>(const ReverseCall& call, Stream stream) {
  const ReverseArguments& in = call.arguments;
  const bool clamped = in.process.graph == Graph::uniform && in.method != Method::euler;
  return clamped ? launch_any<true>(call, stream) : launch_any<false>(call, stream);
}

}  // namespace sedd
