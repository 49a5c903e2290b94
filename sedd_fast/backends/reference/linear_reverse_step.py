"""A reverse step from hidden states in plain torch: all of the head's output, then a draw."""

import torch
from torch import Tensor

from sedd_fast.backends.head import Linear
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.reference.linear_score_entropy import outputs, read
from sedd_fast.backends.reference.reverse_step import reverse_step


def linear_reverse_step(linear: Linear, reverse: ReverseInputs) -> Tensor:
    """x_s (B, L); a token whose row is not read stays."""
    where = read(linear, reverse)
    return torch.where(where, reverse_step(outputs(linear, where), reverse), reverse.x_t)
