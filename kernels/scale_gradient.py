"""Scaling of a gradient that was computed in the forward pass.

    out = upstream * gradient

``upstream``, the gradient of the loss, is a number on the device that is usually 1. The kernel
reads it, so the host need not. In place, it then reads and writes nothing else if it is 1.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
#: Programs of a launch: enough for all multiprocessors, and few enough that starting them is cheap
#: where nothing has to be done.
PROGRAMS = 1024


@triton.jit
def _scale_gradient(gradient, upstream, out, count, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    if (factor != 1.0) | (not IN_PLACE):
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
            at = begin + tl.arange(0, BLOCK)
            g = tl.load(gradient + at, mask=at < count).to(tl.float32)
            tl.store(out + at, (g * factor).to(out.dtype.element_ty), mask=at < count)


def launch(gradient: Tensor, upstream: Tensor, out: Tensor) -> None:
    """Write ``upstream`` () * ``gradient`` into ``out``, contiguous, which may be ``gradient``."""
    count = gradient.numel()
    if count == 0:
        return
    _scale_gradient[(min(PROGRAMS, triton.cdiv(count, BLOCK)),)](
        gradient, upstream, out, count, IN_PLACE=out.data_ptr() == gradient.data_ptr(), BLOCK=BLOCK,
        num_warps=4,
    )  # fmt: skip
