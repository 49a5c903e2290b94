// One reverse step, one block of threads per position. Compiled once for each dtype of the scores
// (setup.py passes SEDD_TYPE). csrc/common/reverse_row.h has everything but the launch.
#include "block.cuh"
#include "launch.cuh"

namespace sedd {
namespace {

// A clamped distribution reads some rows twice, a temperature or top-p more often. All rows in work
// should then stay in the L2 cache (50 MB on sm_90). Two rows of 50,258 16-bit states on each
// multiprocessor take 27 MB, and so does one row of 32-bit states. Two blocks are better than one
// of twice as many threads, because one reads while the other reduces. Kernels that read every row
// once have no such limit.
template <class T, bool clamped, bool filtered>
constexpr int kThreads = !clamped && !filtered ? 256
                         : sizeof(T) == 8      ? 512
                         : sizeof(T) == 4      ? (filtered ? 512 : 1024)
                                               : (filtered ? 256 : 512);
// Blocks that must fit onto a multiprocessor at a time: the most for which no register spills.
template <class T, bool clamped, bool filtered>
constexpr int kBlocks = !clamped && !filtered ? 4
                        : sizeof(T) == 2      ? 2
                                              : 1;

template <class T, bool clamped, bool filtered>
__global__ void __launch_bounds__(kThreads<T, clamped, filtered>, kBlocks<T, clamped, filtered>)
    reverse_step_kernel(const __grid_constant__ ReverseArguments in) {
  extern __shared__ double chunks[];
  __shared__ ReverseShared shared;
  CudaBlock block;
  reverse_row<T, clamped, filtered>(block, shared, chunks, in, blockIdx.x);
}

// Above 48 KB of shared memory a kernel's limit must be raised, on every device. It is raised to
// the device's maximum, so that a smaller request of another host thread cannot lower it again.
// `fixed`: the bytes of the kernel's static shared memory.
template <class Kernel>
Message raise_shared_limit(Kernel kernel, int fixed, int64_t bytes) {
  if (fixed + bytes <= kDefaultShared) return nullptr;
  int device = 0, most = 0;
  if (Message error = error_message(cudaGetDevice(&device))) return error;
  const auto limit = cudaDevAttrMaxSharedMemoryPerBlockOptin;
  if (Message error = error_message(cudaDeviceGetAttribute(&most, limit, device))) return error;
  if (fixed + bytes > most) return "more states than a block's shared memory has room for";
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  return error_message(cudaFuncSetAttribute(kernel, attribute, most - fixed));
}

template <class T, bool clamped, bool filtered>
Message launch(const ReverseCall& call, Stream stream) {
  const int64_t dim = call.arguments.scores.dim;
  const int threads = threads_for<ReverseRow<T>>(dim, kThreads<T, clamped, filtered>);
  const auto blocks = static_cast<unsigned>(call.rows);
  const int64_t chunks = chunk_bytes<T>(dim);
  const auto kernel = reverse_step_kernel<T, clamped, filtered>;
  if (Message error = raise_shared_limit(kernel, sizeof(ReverseShared), chunks)) return error;
  kernel<<<blocks, threads, chunks, static_cast<cudaStream_t>(stream)>>>(call.arguments);
  return error_message(cudaGetLastError());
}

template <bool clamped>
Message launch_any(const ReverseCall& call, Stream stream) {
  return call.arguments.filtered() ? launch<SEDD_TYPE, clamped, true>(call, stream)
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
