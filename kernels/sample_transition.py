"""Noise clean tokens: x_t ~ p(. | x_0), elementwise."""

import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.coefficients import expm1

#: Tokens of a program, two a thread.
BLOCK = 256


@triton.jit(do_not_specialize=["vocab"])
def _sample_transition(
    x_0, sigma, u, x_t, length, blocks, vocab, ABSORBING: tl.constexpr, BLOCK: tl.constexpr
):
    """A program a block of one sequence, whose noise is one number."""
    program = tl.program_id(0)
    sequence = program // blocks
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    i = sequence.to(tl.int64) * length + at
    token = tl.load(x_0 + i, mask=inside, other=0)
    u0 = tl.load(u + 2 * i, mask=inside, other=1.0)
    u1 = tl.load(u + 2 * i + 1, mask=inside, other=0.0)
    noise = tl.load(sigma + sequence).to(tl.float64)
    # A bad value leaves the token.
    good = (noise > 0) & (noise < float("inf"))
    noised = (u0 < tl.where(good, -expm1(-noise), -float("inf"))) & (u1 >= 0) & (u1 < 1)
    if ABSORBING:
        other = tl.zeros_like(token) + vocab
    else:
        # Of a u1 in [0, 1) as many bits as the vocabulary's size has hold the product.
        other = tl.minimum((u1 * vocab).to(vocab.dtype), vocab - 1).to(tl.int64)
    tl.store(x_t + i, tl.where(noised, other, token), mask=inside)


def programs(batch: int, length: int) -> int:
    """How many a launch has."""
    return batch * triton.cdiv(length, BLOCK)


def launch(x_0: Tensor, sigma: Tensor, u: Tensor, x_t: Tensor, graph: str, vocab_size: int) -> None:
    """Noise ``x_0`` (B, L) into ``x_t``."""
    batch, length = x_0.shape
    if batch * length == 0:
        return
    _sample_transition[(programs(batch, length),)](
        x_0, sigma, u, x_t, length, triton.cdiv(length, BLOCK), vocab_size,
        ABSORBING=graph == "absorbing", BLOCK=BLOCK, enable_fp_fusion=True,
    )  # fmt: skip
