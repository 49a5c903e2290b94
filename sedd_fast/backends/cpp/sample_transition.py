"""sample_transition in C++."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.compiled import GRAPHS, address
from sedd_fast.backends.cpp.module import kernels
from sedd_fast.backends.inputs import NoisingInputs


@values.checked_by_kernel
def sample_transition(noising: NoisingInputs) -> Tensor:
    """x_t ~ p(. | x_0)."""
    noising = noising.contiguous()
    x_t = torch.empty_like(noising.x_0)
    addresses = map(address, (noising.x_0, noising.sigma, noising.u, x_t))
    process = GRAPHS[noising.graph], noising.vocab_size
    run = kernels().sample_transition
    if not run(*addresses, *x_t.shape, *process, torch.get_num_threads()):
        values.check(noising)
    return x_t
