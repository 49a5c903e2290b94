"""The draw of the original code, with its float32 Gumbel noise, to reproduce published samples.

It takes argmax_y p_y / e_y, e_y = 1e-10 - ln(u_y + 1e-10) with a float32 uniform u_y. The e_y are
exponential variables only roughly: u has 24 bits, so that e_y is a multiple of 6e-8 near 0, and
never above 23. A state of less than 2e-9 of the weight can never win, and one of less than 1e-7
wins too seldom. This concerns tokens far down the tail, and all jumps together against "stay
masked" where each jump is that unlikely. docs/sampling.md has figures. For comparison only.

Source: the original's catsample.py; Zheng et al. 2024 (arXiv 2409.02908), section 5.
"""

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import Generator, torch_uniform


def gumbel_argmax(probs: Tensor, generator: Generator | None = None) -> Tensor:
    """The original's draw from weights (..., n), with one float32 uniform a state: (...) int64.

    It makes several tensors of the size of the weights.
    """
    u = torch_uniform(probs.shape, probs.device, generator, torch.float32)
    return (probs.float() / (1e-10 - (u + 1e-10).log())).argmax(-1)
