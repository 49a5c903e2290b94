"""Whether the values of tensors can be asked for."""

import torch
from torch import Tensor
from torch.compiler import is_compiling


def is_traced() -> bool:
    """Whether torch.compile or torch.func runs the program, so that no value can be asked for."""
    return is_compiling() or torch._C._are_functorch_transforms_active()


def is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured on the tensor's device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def is_static(tensor: Tensor) -> bool:
    """Whether a graph is captured or traced: no shape and no check may depend on values then."""
    return is_captured(tensor) or is_traced()
