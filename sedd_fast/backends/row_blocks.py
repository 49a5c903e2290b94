"""A reverse step from hidden states: the head's output for a few whole rows at a time.

A draw needs the sums of its whole row first, so rows are not cut. A few whole rows are formed in
the workspace, the ordinary kernel draws from them, and the next rows overwrite them.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.head import Linear
from sedd_fast.backends.head_plan import TILE_ROWS
from sedd_fast.backends.inputs import ReverseInputs

#: Elements that a row of the block is padded to: products run slower into rows of odd length.
ALIGNMENT = 64

#: States whose weights are converted at a time, and states of a product on a GPU.
STATES, GPU_STATES = 2048, 16384

#: (log_score, reverse) -> x_s
Step = Callable[[Tensor, ReverseInputs], Tensor]


def linear_reverse_step(linear: Linear, reverse: ReverseInputs, step: Step) -> Tensor:
    """x_s (B, L); ``step`` is the backend's reverse_step."""
    x_t = reverse.x_t.flatten()
    rows = linear.read(reverse)
    x_s = torch.cat((x_t, x_t.new_zeros(1)))  # the last one is for rows that mean no position
    dim = linear.weight.shape[0]
    count = min(rows_at_once(linear), max(1, len(rows)))
    memory = linear.weight.new_empty(count, _stride(linear), dtype=linear.dtype)
    for some in rows.split(count) if len(rows) else ():
        scores = memory[: len(some), :dim]
        _product(linear, linear.gathered(some), scores)
        x_s[torch.where(some < 0, len(x_t), some)] = _draw(scores, reverse, some, step)
    return x_s[:-1].view(reverse.x_t.shape).clone()


def rows_at_once(linear: Linear) -> int:
    """How many rows the workspace holds, or one; on a GPU whole tiles of them, or part of one."""
    room, each = linear.workspace, _stride(linear)
    if is_tiled(linear.hidden.device):  # what a product with a bias, and a converted weight, take
        part = min(GPU_STATES, len(linear.weight))
        each += part * (linear.bias is not None)
        width, converted = linear.weight.shape[1], linear.weight.dtype != linear.dtype
        room -= min(room // 2, part * width * linear.dtype.itemsize * converted)
    rows = max(1, room // (each * linear.dtype.itemsize))
    if is_tiled(linear.hidden.device) and rows >= TILE_ROWS:
        rows -= rows % TILE_ROWS
    return rows


def is_tiled(device: torch.device) -> bool:
    """Whether products there are cut into tiles of TILE_ROWS rows."""
    return device.type == "cuda"


def _stride(linear: Linear) -> int:
    return -(-linear.weight.shape[0] // ALIGNMENT) * ALIGNMENT


def _product(linear: Linear, hidden: Tensor, out: Tensor) -> None:
    """hidden @ weight.T + bias, a part of the states at a time."""
    for at in _parts(linear):
        weight, into = linear.weight[at].to(linear.dtype), out[:, at]
        if linear.bias is None:
            torch.mm(hidden, weight.T, out=into)
            continue
        bias = linear.bias[at].to(linear.dtype)
        if is_tiled(hidden.device):
            # With ``out``, cuBLAS rounds the product before it adds the bias.
            into.copy_(F.linear(hidden, weight, bias))
        else:
            torch.addmm(bias, hidden, weight.T, out=into)


def _parts(linear: Linear) -> Iterator[slice]:
    """The states of each product: all, or as many of a weight as are converted at a time.

    On a GPU so many too, and those that remain of a multiple of ALIGNMENT by themselves: cuBLAS
    forms products of an odd number of states several times more slowly.
    """
    even = states = len(linear.weight)
    part = states if linear.weight.dtype == linear.dtype else STATES
    if is_tiled(linear.hidden.device):
        even, part = states - states % ALIGNMENT, GPU_STATES
    for begin in range(0, even, part):
        yield slice(begin, min(begin + part, even))
    if even < states:
        yield slice(even, states)


def _draw(scores: Tensor, reverse: ReverseInputs, rows: Tensor, step: Step) -> Tensor:
    """(R,) the next tokens at those positions, from their raw scores (R, dim)."""
    at = rows.clamp(min=0)
    try:
        drawn = step(scores[:, None], reverse.at(at))
    except values.UndrawableError as error:
        position = divmod(int(at[error.position[0]]), reverse.x_t.shape[1])
        raise values.UndrawableError(position, "the head's output") from None
    return drawn.squeeze(-1)
