"""Noising of clean tokens: x_t ~ p(. | x_0), elementwise.

x_t = x_0 if u0 >= 1 - exp(-sigma), else the mask (absorbing) or floor(u1 * V) (uniform)
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.coefficients import expm1

#: Tokens of a program, two per thread.
BLOCK = 256


class Pointers(NamedTuple):
    """What the kernel reads, and x_t, which it writes."""

    x_0: Any
    sigma: Any
    u: Any
    x_t: Any


@triton.jit(do_not_specialize=["vocab", "mask"])
def _sample_transition(
    pointers, length, blocks, vocab, mask, ABSORBING: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per block of tokens of one sequence, which share one sigma."""
    x_0, sigma, u, x_t = pointers
    program = tl.program_id(0)
    sequence = program // blocks
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    i = sequence.to(tl.int64) * length + at
    token = tl.load(x_0 + i, mask=inside, other=0)
    u0 = tl.load(u + 2 * i, mask=inside, other=1.0)
    u1 = tl.load(u + 2 * i + 1, mask=inside, other=0.0)
    noise = tl.load(sigma + sequence).to(tl.float64)
    # The token is kept where an input is invalid.
    good = (noise > 0) & (noise < float("inf"))
    noised = (u0 < tl.where(good, -expm1(-noise), -float("inf"))) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        other = tl.zeros_like(token) + mask
    else:
        # u1 is in [0, 1), so the product fits into the integer type of the vocabulary size.
        other = tl.minimum((u1 * vocab).to(vocab.dtype), vocab - 1).to(tl.int64)
    tl.store(x_t + i, tl.where(noised, other, token), mask=inside)


def programs(batch: int, length: int) -> int:
    """Number of programs of a launch."""
    return batch * triton.cdiv(length, BLOCK)


def launch(noising: Any, x_t: Tensor) -> None:
    """Noise the tokens x_0 (B, L) of ``noising``, with its uniforms (B, L, 2), into ``x_t``."""
    batch, length = noising.x_0.shape
    if batch * length == 0:
        return
    _sample_transition[(programs(batch, length),)](
        Pointers(noising.x_0, noising.sigma, noising.u, x_t), length, triton.cdiv(length, BLOCK),
        noising.vocab_size, noising.mask_index, ABSORBING=noising.graph == "absorbing", BLOCK=BLOCK,
        enable_fp_fusion=True,
    )  # fmt: skip
