"""sample_transition as a Triton kernel."""

import torch
from torch import Tensor

from sedd_fast.backends.inputs import NoisingInputs
from sedd_fast.backends.triton.launch import launched


def sample_transition(noising: NoisingInputs) -> Tensor:
    """x_t ~ p(. | x_0)."""
    from sedd_fast.kernels import sample_transition as kernel

    noising = noising.contiguous(keep_fp32=True)
    x_t = torch.empty_like(noising.x_0)
    launched("sample_transition", x_t, kernel.launch, noising, x_t)
    return x_t
