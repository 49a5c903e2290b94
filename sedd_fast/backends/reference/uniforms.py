"""Uniform numbers of Philox-4x32-10 in NumPy, the same as those of the C++ kernel.

Philox is a counter-based generator: a block of four 32-bit words is a function of a counter of four
words and a key of 64 bits, so that blocks may be computed in any order, by any number of threads.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_LOWER = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)  # bits of half a word
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85


def philox(counter: Sequence[np.ndarray], key: int) -> list[np.ndarray]:
    """The blocks of that key: four words of each, from the four words of each counter.

    Args:
        counter: four uint64 arrays of one shape, each value below 2^32; the lowest word first.
        key: below 2^64.

    Returns:
        Four uint64 arrays, each value below 2^32.
    """
    x0, x1, x2, x3 = counter
    words = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = x0 * _FACTORS[0], x2 * _FACTORS[1]
        x0, x1 = (b >> _HALF) ^ x1 ^ np.uint64(words[0]), b & _LOWER
        x2, x3 = (a >> _HALF) ^ x3 ^ np.uint64(words[1]), a & _LOWER
        words = [(word + step) & 0xFFFFFFFF for word, step in zip(words, _KEY_STEPS, strict=True)]
    return [x0, x1, x2, x3]


def fill_uniforms(u: Tensor, key: int, first: int = 0) -> None:
    """Fill u with uniforms in [0, 1) of 53 bits, two of each block of Philox from ``first`` on.

    Args:
        u: contiguous float64 on the CPU.
        key: below 2^64.
        first: the counter of the first block, below 2^64.
    """
    count = u.numel()
    blocks = np.arange((count + 1) // 2, dtype=np.uint64) + np.uint64(first)
    zero = np.zeros_like(blocks)
    x0, x1, x2, x3 = philox((blocks & _LOWER, blocks >> _HALF, zero, zero), key)
    pairs = np.stack((x0 << _HALF | x1, x2 << _HALF | x3), axis=-1)
    numbers = (pairs >> np.uint64(11)) * 2.0**-53
    u.view(-1).copy_(torch.from_numpy(numbers.reshape(-1)[:count]))
