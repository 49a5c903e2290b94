"""sample_transition in plain torch."""

import torch
from torch import Tensor

from sedd_fast.backends.inputs import NoisingInputs


def sample_transition(noising: NoisingInputs) -> Tensor:
    """x_t ~ p(. | x_0): noised when u0 < 1 - exp(-sigma), to the mask or to floor(u1 * V)."""
    x_0, u, size = noising.x_0, noising.u, noising.vocab_size
    noised = u[..., 0] < -torch.expm1(-noising.sigma.double())[:, None]
    if noising.graph == "absorbing":
        return torch.where(noised, noising.mask_index, x_0).contiguous()
    token = (u[..., 1] * size).long().clamp(max=size - 1)
    return torch.where(noised, token, x_0).contiguous()
