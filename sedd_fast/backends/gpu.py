"""What the GPU backends share: the device guard of a launch."""

from __future__ import annotations

import torch
from torch import Tensor


def on(tensor: Tensor) -> torch.cuda.device:
    """The device guard of a launch; on the CPU (Triton's interpreter) it does nothing."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
