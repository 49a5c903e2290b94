"""A reverse step from hidden states on a GPU: blocks of whole rows, drawn from by the kernel."""

from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.triton.launch import unsupported
from sedd_fast.backends.triton.reverse_step import reverse_step


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L): one product of the rows that may move.

    Raises:
        RuntimeError: more states than the kernel of a row can hold.
    """
    if reason := unsupported("reverse_step", linear.weight.t()):
        raise RuntimeError(
            f"linear_reverse_step cannot run on the 'triton' backend: {reason}; "
            'use_backend("reference") has no such limit'
        )
    return row_blocks.linear_reverse_step(linear, reverse, reverse_step)
