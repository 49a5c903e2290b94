"""Draws from hidden states that need whole rows of the head's output: a few of them at a time.

A reverse step needs the sums of its whole row first, and top-p all scores of it. A few whole rows
are formed in the workspace, the backend's reverse_step draws from them, and the next rows overwrite
them.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.head import Linear
from sedd_fast.backends.head_plan import TILE_ROWS
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.backends.softmax import DenoiseInputs, ranges

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
    memory = linear.weight.new_empty(count, _stride(dim), dtype=linear.dtype)
    for some in rows.split(count) if len(rows) else ():
        scores = memory[: len(some), :dim]
        _product(linear, linear.gathered(some), scores)
        at = some.clamp(min=0)
        drawn = _draw(scores, reverse.at(at), at, reverse.x_t.shape[1], step)
        x_s[torch.where(some < 0, len(x_t), some)] = drawn
    return x_s[:-1].view(reverse.x_t.shape).clone()


def draw_whole_rows(linear: Linear, inputs: DenoiseInputs, rows: Tensor, step: Step) -> Tensor:
    """(R,) tokens drawn from softmax(f) with the temperature and top-p of ``inputs``.

    To the backend's reverse_step a row is that of a masked token of an absorbing graph over all
    states: a denoising step from it always moves, and in proportion to exp(f / temperature).

    Args:
        rows: (R,) positions b * L + i, -1 for none.
        step: the backend's reverse_step.

    Returns:
        int64; -1 for a row that gives no distribution where values are not checked.

    Raises:
        ValueError: such a row, where they are.
    """
    assert inputs.u is not None
    dim, dtype = len(linear.weight), linear.dtype
    # A softcap is applied in float32: rounded once more, scores near it would be equal.
    capped = dtype if not inputs.softcap else fp32_or_fp64(dtype)
    count = rows_at_once(linear, 1, capped.itemsize * (capped != dtype))
    memory = linear.weight.new_empty(min(count, len(rows)), _stride(dim + 1), dtype=dtype)
    memory[:, dim] = 0  # the mask's score, which no step reads
    u = inputs.u.flatten(0, 1)
    drawn = []
    for some in rows.split(count) if len(rows) else ():
        scores, at = memory[: len(some), : dim + 1], some.clamp(min=0)
        _product(linear, linear.gathered(some), scores[:, :dim])
        if inputs.softcap:
            scores = scores.to(capped).div_(inputs.softcap).tanh_().mul_(inputs.softcap)
        for part in ranges(inputs.excluded):
            scores[:, part] = -torch.inf
        reverse = _denoising(u[at, 1], dim, inputs)
        drawn.append(_draw(scores, reverse, at, linear.hidden.shape[1], step))
    tokens = torch.cat(drawn) if drawn else rows
    return torch.where(tokens == dim, -1, tokens)  # the mask stays where nothing can be drawn


def _denoising(u: Tensor, dim: int, inputs: DenoiseInputs) -> ReverseInputs:
    """A denoising step of R masked tokens, each a sequence of its own, drawn by u (R,)."""
    one = torch.ones_like(u)
    return ReverseInputs(
        x_t=torch.full_like(u[:, None], dim, dtype=torch.int64), sigma=one, dsigma=one,
        u=torch.stack((torch.zeros_like(u), u), -1)[:, None], graph="absorbing", vocab_size=dim,
        mask_index=dim, method="denoise", temperature=inputs.temperature, top_p=inputs.top_p,
    )  # fmt: skip


def rows_at_once(linear: Linear, more_states: int = 0, copy_bytes: int = 0) -> int:
    """How many rows the workspace holds, or one; on a GPU whole tiles of them, or part of one.

    A row has ``more_states`` than the head, and every score is copied to so many bytes besides.
    """
    room, item = linear.workspace, linear.dtype.itemsize
    stride = _stride(len(linear.weight) + more_states)
    each = stride * (item + copy_bytes)
    if is_tiled(linear.hidden.device):  # what a product with a bias, and a converted weight, take
        part = min(GPU_STATES, len(linear.weight))
        each += part * item * (linear.bias is not None)
        width, converted = linear.weight.shape[1], linear.weight.dtype != linear.dtype
        room -= min(room // 2, part * width * item * converted)
    rows = max(1, room // each)
    if is_tiled(linear.hidden.device) and rows >= TILE_ROWS:
        rows -= rows % TILE_ROWS
    return rows


def is_tiled(device: torch.device) -> bool:
    """Whether products there are cut into tiles of TILE_ROWS rows."""
    return device.type == "cuda"


def _stride(states: int) -> int:
    return -(-states // ALIGNMENT) * ALIGNMENT


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


def _draw(scores: Tensor, reverse: ReverseInputs, at: Tensor, length: int, step: Step) -> Tensor:
    """(R,) the next tokens of rows, from their scores (R, dim), which belong to positions ``at``
    of sequences of that length.
    """
    try:
        drawn = step(scores[:, None], reverse)
    except values.UndrawableError as error:
        position = divmod(int(at[error.position[0]]), length)
        raise values.UndrawableError(position, "the head's output") from None
    return drawn.squeeze(-1)
