"""A gradient formed in the forward pass times that of the loss, which the device looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends.gpu import launching


def scale_gradient(
    gradient: Tensor, upstream: Tensor, dtype: torch.dtype, in_place: bool
) -> Tensor:
    """``upstream`` () * ``gradient`` in ``dtype``; in its memory where ``in_place`` and possible.

    Each product is formed in float32 and rounded once.
    """
    import triton

    from sedd_fast.kernels import scale_gradient as kernel

    out = gradient
    if not in_place or dtype != gradient.dtype:
        out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    with launching("linear_score_entropy's backward", gradient, triton.TritonError):
        kernel.launch(gradient, upstream, out)
    return out
