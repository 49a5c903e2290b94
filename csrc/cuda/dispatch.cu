// Selects the kernels by the dtype of the scores. They are compiled separately, one object file per
// dtype.
#include "launch.cuh"

namespace sedd {

template <>
Message launch_entropy<float>(const EntropyCall&, Stream);
template <>
Message launch_entropy<BFloat16>(const EntropyCall&, Stream);
template <>
Message launch_entropy<Half>(const EntropyCall&, Stream);
template <>
Message launch_entropy<double>(const EntropyCall&, Stream);
template <>
Message launch_reverse<float>(const ReverseCall&, Stream);
template <>
Message launch_reverse<BFloat16>(const ReverseCall&, Stream);
template <>
Message launch_reverse<Half>(const ReverseCall&, Stream);
template <>
Message launch_reverse<double>(const ReverseCall&, Stream);

namespace {

// Selects the device: this library has its own, statically linked CUDA runtime, which may not know
// the device that torch's runtime selected.
template <class Call>
Message prepare(const Call& call, int device) {
  if (Message error = too_large(call.rows, call.arguments.scores.dim)) return error;
  return error_message(cudaSetDevice(device));
}

}  // namespace

Message score_entropy(const EntropyCall& call, int device, Stream stream) {
  if (call.rows == 0) return nullptr;
  if (Message error = prepare(call, device)) return error;
  switch (call.dtype) {
    case DType::float32:
      return launch_entropy<float>(call, stream);
    case DType::bfloat16:
      return launch_entropy<BFloat16>(call, stream);
    case DType::float16:
      return launch_entropy<Half>(call, stream);
    default:
      return launch_entropy<double>(call, stream);
  }
}

Message reverse_step(const ReverseCall& call, int device, Stream stream) {
  if (call.rows == 0) return nullptr;
  if (Message error = prepare(call, device)) return error;
  switch (call.dtype) {
    case DType::float32:
      return launch_reverse<float>(call, stream);
    case DType::bfloat16:
      return launch_reverse<BFloat16>(call, stream);
    case DType::float16:
      return launch_reverse<Half>(call, stream);
    default:
      return launch_reverse<double>(call, stream);
  }
}

int64_t most_states(DType dtype, int device) {
  int shared = 0;
  const auto limit = cudaDevAttrMaxSharedMemoryPerBlockOptin;
  if (error_message(cudaDeviceGetAttribute(&shared, limit, device))) return 0;
  return most_states(dtype, static_cast<int64_t>(shared));
}

}  // namespace sedd
