"""A tile of a linear head's output, formed in registers, for the kernels of a step.

    f = hidden @ weight.T + bias, for ROWS rows and STATES states

A program computes the product in float32 accumulators and continues with it in registers; the
output is never stored. Consecutive programs have the same states and different rows: the hidden
states of a launch stay in the L2 cache, and the weight is read from memory once.
"""

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: The score of a state that does not exist: its exponential is 0. It is finite, because the product
#: is added to it.
NO_SCORE = tl.constexpr(-1e30)


@triton.jit
def origin(rows, ROWS: tl.constexpr, STATES: tl.constexpr):
    """First row and first state of this program's tile."""
    down = tl.cdiv(rows, ROWS)
    return tl.program_id(0) % down * ROWS, tl.program_id(0) // down * STATES


@triton.jit
def scores(operands, sizes, OPTIONS: tl.constexpr):
    """The output f of this program's tile, (rows, states) float32; NO_SCORE beyond the last state.

    Rows beyond the last one are copies of it. A tile that begins after the first ``live`` rows is
    not multiplied: in a list of fixed length, the rows without a position are at the end.
    OPTIONS: a kernel's, with the fields of ``TileOptions``.
    """
    hidden, weight, bias, live = operands
    rows, states, width = sizes.rows, sizes.states, sizes.width
    stride_h, stride_w, stride_k = sizes.stride_h, sizes.stride_w, sizes.stride_k
    ROWS: tl.constexpr = OPTIONS.rows
    STATES: tl.constexpr = OPTIONS.states
    DEPTH: tl.constexpr = OPTIONS.depth
    i, y = origin(rows, ROWS, STATES)
    k, n = tl.arange(0, DEPTH), tl.arange(0, STATES)
    left = tl.minimum(tl.arange(0, ROWS), rows - 1 - i)[:, None] * stride_h + k[None, :]
    right = tl.minimum(n, states - 1 - y)[None, :] * stride_w + k[:, None] * stride_k
    hidden += i.to(tl.int64) * stride_h
    weight += y.to(tl.int64) * stride_w
    # The accumulator starts as the bias: added at the end, it would occupy registers until then.
    b = tl.load(bias + y + n, mask=n < states - y, other=NO_SCORE)
    f = tl.zeros([ROWS, STATES], tl.float32) + b[None, :]
    for begin in range(0, tl.where(i < tl.load(live), width, 0), DEPTH):
        if OPTIONS.even:
            h, w = tl.load(hidden + left), tl.load(weight + right)
        else:
            inside = k < width - begin
            h = tl.load(hidden + left, mask=inside[None, :], other=0.0)
            w = tl.load(weight + right, mask=inside[:, None], other=0.0)
        if OPTIONS.dot_fp32:
            h, w = h.to(tl.float32), w.to(tl.float32)
        f = tl.dot(h, w, f, input_precision="ieee")
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


class MatmulTile(NamedTuple):
    """The tile of a program: its rows and states, the depth that is multiplied at a time, its
    warps, and how many depths are loaded in advance (Triton's num_stages).
    """

    rows: int
    states: int
    depth: int
    warps: int
    stages: int


#: Bytes per element of the operands -> tile. For 16 bits the fastest of seven on an H200. float32
#: is multiplied exactly, without tensor cores, and is not meant to be fast.
TABLE: dict[int, MatmulTile] = {2: MatmulTile(128, 256, 64, 8, 3), 4: MatmulTile(64, 64, 32, 4, 2)}


class Sizes(NamedTuple):
    """The sizes and strides of a head's product."""

    rows: Any
    states: Any
    width: Any
    stride_h: Any
    stride_w: Any
    stride_k: Any


class TileOptions(NamedTuple):
    """What the tile kernels are compiled for.

    Attributes:
        with_x_t: x_t may be among the states, and is then left out.
        halvings: how often a tile is halved; its pieces are in registers one after the other.
        even: whether ``depth`` divides the width.
        dot_fp32: operands are converted to float32, because Triton's interpreter multiplies the
            bit patterns of bf16.
        rows, states, depth: those of the ``MatmulTile``.
    """

    with_x_t: bool
    halvings: int
    even: bool
    dot_fp32: bool
    rows: int
    states: int
    depth: int


class Operands(NamedTuple):
    """The operands of a head's product.

    Attributes:
        hidden: (R, H), contiguous.
        weight: (n, H).
        bias: (n,) float32.
        live: () int64, how many rows have a position; the others are at the end.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    live: Tensor

    def sizes(self) -> Sizes:
        """The numbers of the kernels' arguments."""
        rows, width = self.hidden.shape
        return Sizes(rows, len(self.weight), width, self.hidden.stride(0), *self.weight.stride())

    def options(self, with_x_t: bool, piece: int) -> dict[str, Any]:
        """Compile-time argument and launch options; pieces of at most ``piece`` states."""
        of, size = tile(self.hidden.dtype), self.hidden.element_size()
        known = TileOptions(
            with_x_t,
            halvings=max(0, (of.states // piece).bit_length() - 1),
            even=self.hidden.shape[1] % of.depth == 0,
            dot_fp32=triton.knobs.runtime.interpret and self.hidden.dtype == torch.bfloat16,
            rows=of.rows,
            states=of.states,
            depth=of.depth,
        )
        return {
            "OPTIONS": known,
            "num_warps": of.warps,
            "num_stages": stages(of, size, shared_memory(self.hidden.device)),
            "enable_fp_fusion": True,
        }

    def grid(self) -> tuple[int]:
        """One program per tile."""
        down, across = tiles(len(self.hidden), len(self.weight), self.hidden.dtype)
        return (down * across,)


def tile(dtype: torch.dtype) -> MatmulTile:
    """The tile for operands of that dtype."""
    return TABLE[dtype.itemsize]


def tiles(rows: int, states: int, dtype: torch.dtype) -> tuple[int, int]:
    """The number of tiles that cover the rows, and the number that cover the states."""
    return triton.cdiv(rows, tile(dtype).rows), triton.cdiv(states, tile(dtype).states)


def stages(of: MatmulTile, size: int, shared: int) -> int:
    """The stages of the tile, but at most as many as fit into ``shared`` bytes of shared memory."""
    each = (of.rows + of.states) * of.depth * size
    return max(1, min(of.stages, shared // each))


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may use; without a GPU, those of a data-center GPU."""
    if device.type != "cuda":
        return 160 << 10
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))
