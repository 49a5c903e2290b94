"""A reverse step from hidden states: blocks of whole rows, each drawn from while it is in cache."""

from __future__ import annotations

from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.cpp.reverse_step import reverse_step
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import Reverse


def linear_reverse_step(linear: Linear, reverse: Reverse) -> Tensor:
    """x_s (B, L): one product of the rows that may move."""
    return row_blocks.linear_reverse_step(linear, reverse, reverse_step)
