// The operations on the GPU. Each launches its kernel on a stream and returns at once, with null or
// CUDA's message about a failed launch. None allocates memory or synchronises the device.
#pragma once

#include "common/dtype.h"
#include "common/entropy_row.h"
#include "common/reverse_row.h"
#include "common/transition.h"

namespace sedd {

using Stream = void*;         // a cudaStream_t
using Message = const char*;  // null, or an error message

struct EntropyCall {
  EntropyArguments arguments;
  int64_t rows;
  DType dtype;
  bool grad_fp32;  // the gradient of float16 scores is float32
};

struct ReverseCall {
  ReverseArguments arguments;
  int64_t rows;
  DType dtype;
};

Message score_entropy(const EntropyCall& call, int device, Stream stream);
Message reverse_step(const ReverseCall& call, int device, Stream stream);
Message sample_transition(const TransitionArguments& arguments, int device, Stream stream);

// The most states that reverse_step supports on that device, limited by its shared memory; 0 if
// CUDA reports an error.
int64_t most_states(DType dtype, int device);

// Null if the kernels were compiled for the architecture of that device, else CUDA's error message.
Message unsupported(int device);

// --- one object file per dtype (csrc/cuda/score_entropy.cu, reverse_step.cu) --------------------

template <class T>
Message launch_entropy(const EntropyCall& call, Stream stream);
template <class T>
Message launch_reverse(const ReverseCall& call, Stream stream);

}  // namespace sedd
