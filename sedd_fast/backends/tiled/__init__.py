"""The Triton backend, with the head's product fused into its kernels tile by tile.

A block of the head's output, which the ``triton`` backend lets cuBLAS form, is formed here by a
kernel that keeps it in registers: sums and gradient in the product's epilogue, and for a
step the sums of a few states at a time. Everything but the head is the ``triton`` backend's own.

It needs no more than ``triton`` does, has not run on a GPU yet, and is never chosen by itself: ask
for it (``use_backend("tiled")``, SEDD_FAST_BACKEND), or let a measured row of ``choices`` name it.
"""

from typing import Any

from sedd_fast.backends import triton
from sedd_fast.backends.tiled.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.tiled.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)


def __getattr__(name: str) -> Any:
    """Everything else is the ``triton`` backend's."""
    return getattr(triton, name)
