"""A gradient formed in the forward pass times the gradient of the loss, which the kernel reads."""

import torch
from torch import Tensor

from sedd_fast.backends.triton.launch import launched


def scale_gradient(
    gradient: Tensor, upstream: Tensor, dtype: torch.dtype, in_place: bool
) -> Tensor:
    """``upstream`` () * ``gradient`` in ``dtype``; in its memory where ``in_place`` and possible.

    Each product is formed in float32 and rounded once.
    """
    from sedd_fast.kernels import scale_gradient as kernel

    out = gradient
    if not in_place or dtype != gradient.dtype:
        out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    launched("linear_score_entropy's backward", gradient, kernel.launch, gradient, upstream, out)
    return out
