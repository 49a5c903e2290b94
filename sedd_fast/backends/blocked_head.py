"""Score entropy of a linear head without its output: a loop over blocks of the vocabulary.

For a block of states: one product makes the raw scores of the touched rows, a kernel adds them to
the rows' sums and replaces them by their gradient, and two products add that to the gradients of
the hidden states and of the weight:

    f = h @ w.T + b          (R, n)  the only tensor of this kind in memory
    g = a * exp(f) - b - c * [y == x_0]      in place
    dh += g @ w              (R, H)
    dw = g.T @ h             (n, H)

A mask that is the last state is not multiplied. Elsewhere it is the x_t of the rows, which a kernel
leaves out of their sums, and its gradient is 0.

The gradient of score entropy needs no normaliser, so one pass over the vocabulary is enough (a
cross-entropy needs the logarithm of its sum first). The products are torch's own.

The ``triton`` backend has a loop of its own, with the same products, because there every launch
counts: one kernel gathers the rows, one writes their losses and gradients back, and between blocks
the sums stay in the layout of its kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.products import accumulate

#: Bytes of a row of a block on a CPU: large products run at full speed on blocks of that width, and
#: rows a power of two apart would share cache sets (6 to 8 % slower).
ROW_BYTES = 4096 - 64
#: Fewest states in a block on a GPU, where few large launches are better, and what they are a
#: multiple of.
FEWEST, MULTIPLE = 1024, 256


class Block(NamedTuple):
    """Neighbouring states of a head, for some rows.

    Attributes:
        hidden: (R, H), the rows, in the dtype of the product.
        weight: (n, H), in that dtype too.
        bias: (n,) float32 or float64, contiguous.
        first: the state of column 0.
        scores: (R, n) memory for the product, in its dtype.
        gradient: (R, n) memory for the gradient, which may be ``scores``, or None for no gradient.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    first: int
    scores: Tensor
    gradient: Tensor | None


def _empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


@dataclass(frozen=True)
class Kernel:
    """What a backend does with a block.

    Attributes:
        run: forms the scores of a block and adds them to the sums of its rows. Where the block has
            memory for a gradient, it forms that and returns its sums over the rows, (n,).
        empty: (shape, like, dtype) -> uninitialised memory on the device of ``like``.
    """

    run: Callable[[Block, EntropyRows], Tensor | None]
    empty: Callable[[tuple[int, ...], Tensor, torch.dtype], Tensor] = _empty


def losses_and_gradients(
    linear: Linear,
    entropy: EntropyInputs,
    grad_scale: Tensor | float | None,
    needs: NeedsGrad,
    kernel: Kernel,
) -> tuple[Tensor, Gradients]:
    """Losses (B, L), and gradients of ``(grad_scale * loss).sum()``: three products, or one.

    Losses are float64 for float64 operands, else float32. ``grad_scale`` is None for no gradient.
    Gradients of float16 operands are float32: a loss scaler has yet to multiply them into range.
    """
    rows, shape = linear.read(entropy), linear.hidden.shape
    with_grad = grad_scale is not None
    grad_dtype = gradient_dtype(linear.dtype)
    separate = with_grad and grad_dtype != linear.dtype
    score_bytes = linear.dtype.itemsize + separate * grad_dtype.itemsize
    count, states = _sizes(linear, len(rows), entropy.read_states, needs, score_bytes)

    memory = count * states if len(rows) else 0
    scores = kernel.empty((memory,), linear.hidden, linear.dtype)
    gradient = kernel.empty((memory,), linear.hidden, grad_dtype) if separate else scores
    loss = linear.hidden.new_zeros(shape[:2].numel() + 1, dtype=torch.float64)
    of_hidden, of_weight, of_bias = _allocate(linear, entropy, needs, kernel, len(rows) > count)
    if of_weight is not None and not len(rows):
        of_weight.zero_()
    bias = linear.bias_fp32()

    for number, chunk in enumerate(rows.split(count) if len(rows) else ()):
        terms, h = EntropyRows(entropy, chunk, grad_scale), linear.gathered(chunk)
        if entropy.row_weight is not None:  # the loss of a row of no finite weight is NaN, unread
            h.masked_fill_(~terms.valid[:, None], 0)
        factor = h.to(grad_dtype) if with_grad else h
        total = _empty(h.shape, h, fp32_or_fp64(linear.dtype)) if needs.hidden else None
        for begin in range(0, entropy.read_states, states):
            at = slice(begin, min(begin + states, entropy.read_states))
            w = linear.weight[at].to(linear.dtype)  # (n, H)
            f = _view(scores, h, w)
            g = _view(gradient, h, w) if with_grad else None
            columns = kernel.run(Block(h, w, bias[at], begin, f, g), terms)
            if total is not None and g is not None:
                accumulate(total, g, w.to(g.dtype), again=begin > 0)
            if of_weight is not None and g is not None:
                accumulate(of_weight[at], g.T, factor, again=number > 0)
            if of_bias is not None and columns is not None:
                of_bias[at] += columns
        to = torch.where(chunk < 0, shape[:2].numel(), chunk)  # the last for no position
        loss[to] = terms.loss()
        if of_hidden is not None and total is not None:
            of_hidden[to] = total.to(of_hidden.dtype)
        del terms, h, factor, total  # before those of the next chunk are made

    if of_hidden is not None:
        of_hidden = of_hidden[:-1].view(shape)
    made = Gradients.of(linear, of_hidden, of_weight, of_bias)
    return loss[:-1].view(shape[:2]).to(fp32_or_fp64(linear.dtype)), made


def _view(memory: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """(R, n) of it, contiguous."""
    return memory[: len(h) * len(w)].view(len(h), len(w))


def _sizes(
    linear: Linear, rows: int, most: int, needs: NeedsGrad, score_bytes: float
) -> tuple[int, int]:
    """Rows and states at a time, ``most`` of these, for the workspace: all rows at once where that
    is possible.

    A row costs its hidden state, the sum of its gradient and its part of a block.
    """
    item, room, rows = linear.dtype.itemsize, linear.workspace, max(1, rows)
    half = linear.dtype == torch.float16 and any(needs)  # the hidden state in float32 besides
    row_bytes = linear.hidden.shape[-1] * (item + needs.hidden * max(item, 4) + half * 4)
    states = ROW_BYTES // item
    if linear.hidden.is_cuda:
        states = max(FEWEST, int((room // rows - row_bytes) / score_bytes) // MULTIPLE * MULTIPLE)
    states = min(states, most)
    return max(1, min(int(room / (row_bytes + states * score_bytes)), rows)), states


def _allocate(
    linear: Linear, entropy: EntropyInputs, needs: NeedsGrad, kernel: Kernel, several: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Memory for the wanted gradients: hidden (B * L + 1, H), weight (dim, H), bias (dim,).

    That of the weight is float32 at least where several chunks of rows add up in it.
    """
    positions, width = linear.hidden.shape[:2].numel(), linear.hidden.shape[-1]
    hidden = weight = bias = None
    if needs.hidden:  # a last row for what belongs to no position
        dtype = gradient_dtype(linear.hidden.dtype)
        hidden = linear.hidden.new_zeros(positions + 1, width, dtype=dtype)
    if needs.weight:
        dtype = gradient_dtype(linear.weight.dtype)
        dtype = fp32_or_fp64(dtype) if several else dtype
        weight = kernel.empty(tuple(linear.weight.shape), linear.weight, dtype)
        weight[entropy.read_states :] = 0
    if needs.bias:
        bias = linear.weight.new_zeros(len(linear.weight), dtype=fp32_or_fp64(linear.dtype))
    return hidden, weight, bias
