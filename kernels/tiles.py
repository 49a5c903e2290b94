"""A tile of a linear head's output, formed in registers: what the tile-fused kernels share.

A program multiplies ROWS hidden states by the weights of STATES states in float32 accumulators and
goes on from there; the output is never stored. Programs that follow each other share the states of
their tile: the rows of a launch stay in the second-level cache, and the weight is read once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sedd_fast.kernels.rows import LOG2_E, exponential

#: The score of a state that does not exist: its exponential is 0. Not infinite, because tensor
#: cores add to it.
NO_SCORE = tl.constexpr(-1e30)


@triton.jit
def origin(rows, ROWS: tl.constexpr, STATES: tl.constexpr):
    """First row and first state of this program's tile."""
    down = tl.cdiv(rows, ROWS)
    return tl.program_id(0) % down * ROWS, tl.program_id(0) // down * STATES


@triton.jit
def scores(
    hidden, weight, bias, live, rows, states, width, stride_h, stride_w, stride_k,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, STATES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """(ROWS, STATES) float32: the output f of this program's tile, NO_SCORE beyond the last state.

    Rows beyond the last one are its copies. A tile that begins after the first ``live`` rows (what
    fills a list of fixed length is at its end) is not multiplied. EVEN: DEPTH divides width. WIDEN:
    operands in float32 (Triton's interpreter multiplies the bits of bf16).
    """
    i, y = origin(rows, ROWS, STATES)
    k, n = tl.arange(0, DEPTH), tl.arange(0, STATES)
    left = tl.minimum(tl.arange(0, ROWS), rows - 1 - i)[:, None] * stride_h + k[None, :]
    right = tl.minimum(n, states - 1 - y)[None, :] * stride_w + k[:, None] * stride_k
    hidden += i.to(tl.int64) * stride_h
    weight += y.to(tl.int64) * stride_w
    # The bias first: added to the product it would stay in registers until then.
    b = tl.load(bias + y + n, mask=n < states - y, other=NO_SCORE)
    f = tl.zeros([ROWS, STATES], tl.float32) + b[None, :]
    for begin in range(0, tl.where(i < tl.load(live), width, 0), DEPTH):
        if EVEN:
            h, w = tl.load(hidden + left), tl.load(weight + right)
        else:
            inside = k < width - begin
            h = tl.load(hidden + left, mask=inside[None, :], other=0.0)
            w = tl.load(weight + right, mask=inside[:, None], other=0.0)
        if WIDEN:
            h, w = h.to(tl.float32), w.to(tl.float32)
        f = tl.dot(h, w, f, input_precision=PRECISION)
        hidden += DEPTH
        weight += DEPTH * stride_k
    return f


@triton.jit
def _halved(pieces):
    made = ()
    for n in tl.static_range(len(pieces)):
        piece = pieces[n]
        two = tl.reshape(piece, [piece.shape[0], 2, piece.shape[1] // 2])
        left, right = tl.split(tl.permute(two, [0, 2, 1]))
        made = made + (left, right)  # noqa: RUF005  (Triton knows no stars)
    return made


@triton.jit
def halves(f, TIMES: tl.constexpr):
    """A tuple of 2^TIMES neighbouring pieces of the columns of f."""
    pieces = (f,)
    for _ in tl.static_range(TIMES):
        pieces = _halved(pieces)
    return pieces


@triton.jit
def exp_of(f, c, HALF: tl.constexpr):
    """exp(f + c), float32; where the operands were half, no more exactly than they deserve."""
    if HALF:
        e = tl.exp2(f * LOG2_E + c * LOG2_E)
    else:
        e = exponential(f + c)
    return e


@triton.jit
def row_dot(row, other, offset, stride, width, DEPTH: tl.constexpr):
    """The product of a row with another one of any dtype, rounded to that of the row; float32."""
    total = tl.zeros([DEPTH], tl.float32)
    for begin in range(0, width, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        h = tl.load(row + k, mask=k < width, other=0.0)
        w = tl.load(other + offset + k.to(tl.int64) * stride, mask=k < width, other=0.0)
        total += h.to(tl.float32) * w.to(h.dtype).to(tl.float32)
    return tl.sum(total, 0)


class Tile(NamedTuple):
    """Rows, states and depth of what a program multiplies at a time, its warps, and how many
    depths are on their way at once.
    """

    rows: int
    states: int
    depth: int
    warps: int
    stages: int


#: Bytes of an operand's number -> tile. From what compiles without spilling; not measured yet.
#: float32 is multiplied exactly, without tensor cores: it is there for completeness.
TABLE: dict[int, Tile] = {2: Tile(128, 256, 64, 8, 3), 4: Tile(64, 64, 32, 4, 2)}


class Operands(NamedTuple):
    """What is multiplied: hidden (R, H) contiguous, weight (n, H), bias (n,) float32; and how many
    rows stand for a position, () int64.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    live: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """As kernels take them."""
        return self.hidden, self.weight, self.bias, self.live

    def numbers(self) -> tuple[int, ...]:
        """rows, states, width and the strides, as kernels take them."""
        rows, width = self.hidden.shape
        return rows, len(self.weight), width, self.hidden.stride(0), *self.weight.stride()

    def options(self) -> dict[str, Any]:
        """How a kernel of tiles is compiled and launched for them."""
        of, size = tile(self.hidden.dtype), self.hidden.element_size()
        return {
            "EVEN": self.hidden.shape[1] % of.depth == 0,
            "HALF": size == 2,
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            "WIDEN": triton.knobs.runtime.interpret and self.hidden.dtype == torch.bfloat16,
            "ROWS": of.rows,
            "STATES": of.states,
            "DEPTH": of.depth,
            "num_warps": of.warps,
            "num_stages": stages(of, size, shared_memory(self.hidden.device)),
            "enable_fp_fusion": True,
        }

    def halvings(self, piece: int) -> int:
        """How often the states of a tile are halved, to pieces of at most so many."""
        return max(0, (tile(self.hidden.dtype).states // piece).bit_length() - 1)

    def grid(self) -> tuple[int]:
        """One program a tile."""
        down, across = tiles(len(self.hidden), len(self.weight), self.hidden.dtype)
        return (down * across,)


def tile(dtype: torch.dtype) -> Tile:
    """The tile for operands of that dtype."""
    return TABLE[dtype.itemsize]


def tiles(rows: int, states: int, dtype: torch.dtype) -> tuple[int, int]:
    """How many tiles cover the rows, and the states."""
    return triton.cdiv(rows, tile(dtype).rows), triton.cdiv(states, tile(dtype).states)


def stages(of: Tile, size: int, shared: int) -> int:
    """The tile's stages, or as many as fit into ``shared`` bytes a program."""
    each = (of.rows + of.states) * of.depth * size
    return max(1, min(of.stages, shared // each))


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have; of a data-center GPU where there is none."""
    if device.type != "cuda":
        return 160 << 10
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))
