// The operations on the GPU: each puts its kernel on a stream and returns at once.
//
// They return null, or what CUDA said about the launch; nothing is allocated, nothing waits.
#pragma once

#include "common/entropy_row.h"
#include "common/reverse_row.h"
#include "common/transition.h"

namespace sedd {

using Stream = void*;         // a cudaStream_t
using Message = const char*;  // null, or an error in words

struct EntropyCall {
  EntropyArguments arguments;
  int64_t rows;
  DType dtype;
  bool wide;  // the gradient of float16 scores is float32
};

struct ReverseCall {
  ReverseArguments arguments;
  int64_t rows;
  DType dtype;
};

Message score_entropy(const EntropyCall& call, int device, Stream stream);
Message reverse_step(const ReverseCall& call, int device, Stream stream);
Message sample_transition(const TransitionArguments& arguments, int device, Stream stream);

// The most states that reverse_step takes on that device, for its shared memory; 0 where CUDA does
// not tell.
int64_t most_states(DType dtype, int device);

// Null where the kernels run on that device: they were compiled for its architecture.
Message unsupported(int device);

// --- one object a type (csrc/cuda/score_entropy.cu, reverse_step.cu) ---------------------------

template <class T>
Message launch_entropy(const EntropyCall& call, Stream stream);
template <class T>
Message launch_reverse(const ReverseCall& call, Stream stream);

}  // namespace sedd
