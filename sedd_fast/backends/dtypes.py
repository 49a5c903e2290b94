"""In which dtypes results and gradients are formed."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor as float32, or float64 where it is that already."""
    return tensor.to(fp32_or_fp64(tensor.dtype))


def fp32_or_fp64(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the dtype of losses and of sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of a gradient formed before its upstream factor is known.

    float32 for float16: a loss scaler has yet to multiply it into the range of float16.
    """
    return torch.float32 if dtype == torch.float16 else dtype
