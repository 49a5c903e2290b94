"""The Triton backend, with the head's product fused into its kernels tile by tile.

A block of the head's output, which the ``triton`` backend lets cuBLAS form, is formed here by a
kernel that goes on with it in registers: sums and gradient in the product's epilogue, and for a
step the sums of a few states at a time. Everything but the head is the ``triton`` backend's own.

It needs no more than ``triton`` does, has not run on a GPU yet, and is never chosen by itself: ask
for it (``use_backend("tiled")``, SEDD_FAST_BACKEND), or let a measured row of ``choices`` name it.
"""

from __future__ import annotations

from sedd_fast.backends.tiled.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.tiled.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)
from sedd_fast.backends.triton import (
    DTYPES,
    devices,
    interpreted,
    reverse_probs,
    reverse_step,
    row_sums,
    row_sums_backward,
    sample_transition,
    score_entropy,
    score_entropy_backward,
    score_entropy_with_grad,
    unavailable,
    unsupported,
)

__all__ = [
    "DTYPES",
    "devices",
    "interpreted",
    "linear_reverse_step",
    "linear_score_entropy",
    "linear_score_entropy_with_grad",
    "reverse_probs",
    "reverse_step",
    "row_sums",
    "row_sums_backward",
    "sample_transition",
    "score_entropy",
    "score_entropy_backward",
    "score_entropy_with_grad",
    "unavailable",
    "unsupported",
]
