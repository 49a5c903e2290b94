"""The operations as Triton kernels (``sedd_fast.kernels``), for CUDA and ROCm.

This package owns what the kernels cannot see: contiguity of the small tensors, the device guard,
the layout of the gradient. Only the operations on a linear head synchronise the device, and only
without a list of rows.
"""

import functools
import importlib.util

import torch

from sedd_fast.backends.reference import reverse_probs
from sedd_fast.backends.triton.launch import interpreted, unsupported
from sedd_fast.backends.triton.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_with_grad,
)
from sedd_fast.backends.triton.linear_denoise import linear_denoise
from sedd_fast.backends.triton.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.triton.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)
from sedd_fast.backends.triton.reverse_step import reverse_step
from sedd_fast.backends.triton.row_sums import row_sums, row_sums_backward
from sedd_fast.backends.triton.sample_transition import sample_transition
from sedd_fast.backends.triton.score_entropy import (
    score_entropy,
    score_entropy_backward,
    score_entropy_with_grad,
)
from sedd_fast.extras import pip_install

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def devices() -> tuple[str, ...]:
    """The kinds of device it runs on; the interpreter takes CPU tensors."""
    return ("cuda", "cpu") if interpreted() else ("cuda",)


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used, or None."""
    if importlib.util.find_spec("triton") is None:
        return f"Triton is not installed (on Linux: {pip_install('cuda')})"
    return None
