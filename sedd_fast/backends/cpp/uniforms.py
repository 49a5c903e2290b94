"""Uniform numbers in C++."""

import torch
from torch import Tensor

from sedd_fast.backends.cpp.module import kernels


def fill_uniforms(u: Tensor, key: int, first: int = 0) -> None:
    """Fill u, contiguous float64, with the numbers of the reference backend."""
    kernels().fill_uniforms(key, first, u.data_ptr(), u.numel(), torch.get_num_threads())
