"""How the reference reads a row of scores."""

import torch
from torch import Tensor


def other_states(x_t: Tensor, dim: int) -> Tensor:
    """(B, L, dim) bool: True at every state y != x_t."""
    return torch.arange(dim, device=x_t.device) != x_t[..., None]
