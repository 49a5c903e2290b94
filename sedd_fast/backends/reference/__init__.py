"""The operations in plain torch: what a reader learns from and every kernel is tested against.

Any device, any floating dtype; float64 in, float64 throughout. Never optimised: it makes several
tensors of size (B, L, dim) where a kernel makes none.

Every function takes validated tensors: log_score (B, L, dim); sigma, dsigma (B,) float32 or
float64; x_t, x_0 (B, L) int64; row_weight (B, L), likewise, or None; u (B, L, 2) float64. Inputs
may have any strides; results are contiguous, as the operations promise torch.compile.
"""

from sedd_fast.backends.compiled import DTYPES
from sedd_fast.backends.reference.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_with_grad,
)
from sedd_fast.backends.reference.linear_denoise import linear_denoise
from sedd_fast.backends.reference.linear_reverse_step import linear_reverse_step
from sedd_fast.backends.reference.linear_score_entropy import (
    linear_score_entropy,
    linear_score_entropy_with_grad,
)
from sedd_fast.backends.reference.reverse_step import (
    reverse_probs,
    reverse_probs_backward,
    reverse_step,
    reverse_weights,
)
from sedd_fast.backends.reference.row_sums import row_sums, row_sums_backward
from sedd_fast.backends.reference.rows import other_states
from sedd_fast.backends.reference.sample_transition import sample_transition
from sedd_fast.backends.reference.score_entropy import (
    score_entropy,
    score_entropy_backward,
    score_entropy_with_grad,
)
from sedd_fast.backends.reference.shares import reshaped
from sedd_fast.backends.reference.uniforms import fill_uniforms


def devices() -> None:
    """The kinds of device it runs on: all."""


def unavailable() -> str | None:
    """Why this backend cannot be used: never."""
    return None
