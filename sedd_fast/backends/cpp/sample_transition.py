"""sample_transition in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.cpp.module import GRAPHS, kernels
from sedd_fast.backends.inputs import Noising


def sample_transition(noising: Noising) -> Tensor:
    """x_t ~ p(. | x_0)."""
    noising = noising.contiguous()
    x_t = torch.empty_like(noising.x_0)
    addresses = (t.data_ptr() for t in (noising.x_0, noising.sigma, noising.u, x_t))
    valid = kernels().sample_transition(
        *addresses,
        *x_t.shape,
        GRAPHS[noising.graph],
        noising.vocab_size,
        torch.get_num_threads(),
    )
    if not valid:
        values.check(noising)
    return x_t
