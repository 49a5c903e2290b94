"""reverse_step as a Triton kernel."""

from torch import Tensor

from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.triton.launch import empty, launched


def reverse_step(log_score: Tensor, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one read of every row that may move, and one chunk of it again."""
    from sedd_fast.kernels import reverse_step as kernel

    reverse = reverse.contiguous(keep_fp32=True)
    x_s = empty(reverse.x_t, reverse.x_t.dtype)
    launched("reverse_step", log_score, kernel.launch, log_score, reverse, x_s)
    return x_s
