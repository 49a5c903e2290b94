"""A reverse step from hidden states on a GPU: blocks of whole rows, drawn from by the kernel."""

from __future__ import annotations

from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import Reverse


def linear_reverse_step(linear: Linear, reverse: Reverse) -> Tensor:
    """x_s (B, L): one product of the rows that may move."""
    from sedd_fast.backends.triton import reverse_step

    return row_blocks.linear_reverse_step(linear, reverse, reverse_step)
