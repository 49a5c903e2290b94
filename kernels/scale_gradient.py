"""A finished gradient times the gradient of the loss, a number on the device that is usually 1."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
#: Programs: enough for every multiprocessor, few enough that those with nothing to do are cheap.
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
    """``out`` = ``upstream`` () * ``gradient``, contiguous; in place nothing is done for 1."""
    count = gradient.numel()
    if count == 0:
        return
    _scale_gradient[(min(PROGRAMS, triton.cdiv(count, BLOCK)),)](
        gradient, upstream, out, count, IN_PLACE=out.data_ptr() == gradient.data_ptr(), BLOCK=BLOCK,
        num_warps=4,
    )  # fmt: skip
