"""How the reference reads a row of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import log_output_scale
from sedd_fast.backends.inputs import Entropy, Reverse


def wide(values: Tensor) -> Tensor:
    """In the dtype in which rows are worked on: float64 stays, all else becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def log_scores(given: Tensor, inputs: Entropy | Reverse) -> Tensor:
    """(B, L, dim) log scores l: those given, or f - ln E - ln V where sigma scales them."""
    if not inputs.scale_by_sigma:
        return wide(given)
    scale = log_output_scale(inputs.sigma.double(), inputs.vocab_size)  # (B,)
    return wide(given) - scale[:, None, None].to(wide(given).dtype)


def other_states(x_t: Tensor, dim: int) -> Tensor:
    """(B, L, dim) bool: True at every state y != x_t."""
    return torch.arange(dim, device=x_t.device) != x_t[..., None]
