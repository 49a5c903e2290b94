"""Whether the values of tensors can be asked for."""

import torch
from torch.compiler import is_compiling


def is_traced() -> bool:
    """Whether torch.compile or torch.func runs the program, so that no value can be asked for."""
    return is_compiling() or torch._C._are_functorch_transforms_active()
