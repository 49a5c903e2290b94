"""How the reference reads a row of scores."""

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import log_output_scale
from sedd_fast.backends.inputs import EntropyInputs, ReverseInputs


def log_scores(given: Tensor, inputs: EntropyInputs | ReverseInputs) -> Tensor:
    """(B, L, dim) float64 log scores l: those given, or f - ln E - ln V where sigma scales them."""
    if not inputs.scale_by_sigma:
        return given.double()
    scale = log_output_scale(inputs.sigma.double(), inputs.vocab_size)  # (B,)
    return given.double() - scale[:, None, None]


def other_states(x_t: Tensor, dim: int) -> Tensor:
    """(B, L, dim) bool: True at every state y != x_t."""
    return torch.arange(dim, device=x_t.device) != x_t[..., None]
