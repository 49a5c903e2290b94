"""sample_transition in C++."""

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.compiled import process_codes
from sedd_fast.backends.cpp.module import kernels, reals
from sedd_fast.backends.inputs import NoisingInputs


@values.checked_by_kernel
def sample_transition(noising: NoisingInputs) -> Tensor:
    """x_t ~ p(. | x_0)."""
    noising = noising.contiguous(keep_fp32=True)
    x_t = torch.empty_like(noising.x_0)
    tensors = noising.x_0.data_ptr(), reals(noising.sigma), noising.u.data_ptr(), x_t.data_ptr()
    process = process_codes(noising)
    run = kernels().sample_transition
    if not run(*tensors, *x_t.shape, *process, torch.get_num_threads()):
        values.check(noising)
    return x_t
