"""What the GPU backends share: the layout of a gradient, and the device guard."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_gradient(log_score: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, dim) with the strides of the scores where their rows are padded, else contiguous.

    Rows that begin at the same offset modulo 16 bytes are written as wide as they are read.
    """
    _, length, dim = log_score.shape
    stride_b, stride_l, stride_y = log_score.stride()
    padded = stride_y == 1 and dim <= stride_l <= 2 * dim and stride_b == length * stride_l
    layout = (stride_b, stride_l, 1) if padded else (length * dim, dim, 1)
    return torch.empty_strided(log_score.shape, layout, dtype=dtype, device=log_score.device)


def on(tensor: Tensor) -> torch.cuda.device:
    """The device guard of a launch; on the CPU (Triton's interpreter) it does nothing."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
