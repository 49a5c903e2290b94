"""Score entropy of a linear head on a GPU: cuBLAS products, and a kernel in place on every block.

The loop of :mod:`sedd_fast.backends.blocked_head` for a device on which every launch counts. It
launches five kernels for a block of the vocabulary (scores, their gradient in place, sums, and the
products with hidden states and weight), and at most twelve besides. The host must know how many
rows were touched: without ``linear.rows`` they are counted first, which synchronises the device.
"""

import functools

import torch
from torch import Tensor

from sedd_fast.backends import head_plan
from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.products import accumulate, evened
from sedd_fast.backends.triton.launch import launched


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) float32 losses: one product of the touched rows."""
    return linear_score_entropy_with_grad(linear, entropy, 0.0, NeedsGrad())[0]


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) float32 losses, and gradients of ``(grad_scale * loss).sum()``: three products."""
    arguments = linear, entropy, grad_scale, needs
    return launched("linear_score_entropy", linear.hidden, _losses_and_gradients, *arguments)


def _losses_and_gradients(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    from sedd_fast.kernels import head_rows
    from sedd_fast.kernels import linear_score_entropy as kernel

    entropy = entropy.contiguous()
    rows = touched(entropy) if linear.rows is None else linear.rows.contiguous()
    scale = grad_scale.contiguous() if isinstance(grad_scale, Tensor) else grad_scale
    bias = None if linear.bias is None else linear.bias.contiguous()
    uniform, with_grad = entropy.graph == "uniform", any(needs)
    end, mask = entropy.read_states, entropy.mask_index
    grad_dtype = gradient_dtype(linear.dtype) if with_grad else linear.dtype
    count, states = _plan(linear, entropy, needs, len(rows))
    width = linear.hidden.shape[2]
    loss = linear.hidden.new_zeros(linear.hidden.shape[:2], dtype=torch.float32)
    of_hidden, of_weight, of_bias = _allocate(linear, end, needs, len(rows), count)

    empty = functools.partial(torch.empty, device=linear.hidden.device)
    room = count if len(rows) else 0
    memory = gradient_memory = empty(room, states, dtype=linear.dtype)
    if grad_dtype != linear.dtype:
        gradient_memory = empty(room, states, dtype=grad_dtype)
    total_memory = empty(room, width, dtype=torch.float32) if needs.hidden else None
    for number, chunk in enumerate(rows.split(count) if len(rows) else ()):
        size, again = len(chunk), number > 0
        hidden = empty(size, width, dtype=linear.dtype)
        tokens = empty(2, size, dtype=torch.int32)
        terms = empty(5, size, dtype=torch.float32)
        sums = empty(1 + uniform, size, dtype=torch.float64)
        operands = linear.hidden, linear.weight, bias
        head_rows.launch_gather(entropy, chunk, operands, scale, (hidden, tokens, terms))
        factor = hidden.to(grad_dtype)  # products take operands of one dtype
        total = None if total_memory is None else total_memory[:size]
        partial = kernel.PartialSums.like(memory[:size], uniform, needs.bias)
        for begin in range(0, end, states):
            at = slice(begin, min(begin + states, end))
            w, n = evened(linear.weight[at], linear.dtype), at.stop - begin
            f = torch.mm(hidden, w.T, out=memory[:size, : len(w)])
            g = gradient_memory[:size, : len(w)] if with_grad else None
            b = None if bias is None else bias[at]
            used = None if g is None else g[:, :n]
            with_x_t = uniform or begin <= mask < at.stop
            kernel.launch(f[:, :n], b, used, (tokens, terms), partial, begin, with_x_t)
            if g is not None and total is not None:
                accumulate(total, g, w.to(g.dtype), again=begin > 0)
            if used is not None and of_weight is not None:
                accumulate(of_weight[at], used.T, factor, again)
            last = at.stop if at.stop < end else None  # it also sets what lies beyond to 0
            columns = None if of_bias is None else of_bias[begin:last]
            kernel.launch_sums(partial, sums, columns, n, begin > 0, again)
        into = None if total is None or of_hidden is None else (total, of_hidden)
        head_rows.launch_scatter(entropy, chunk, terms, sums, loss, into)
        del hidden, factor, partial  # before those of the next chunk are made
    return loss, Gradients.of(linear, of_hidden, of_weight, of_bias)


def _plan(linear: Linear, entropy: EntropyInputs, needs: NeedsGrad, rows: int) -> head_plan.Plan:
    from sedd_fast.kernels import linear_score_entropy as kernel
    from sedd_fast.kernels.settings import multiprocessors

    item, width = linear.dtype.itemsize, linear.hidden.shape[2]
    separate = 4 * (linear.dtype == torch.float16 and any(needs))  # a gradient in float32
    tile, uniform = kernel.TABLE[item], entropy.graph == "uniform"
    row_bytes = width * (item + 4 * needs.hidden + separate) + 5 * 4 + 2 * 4 + 2 * 8
    score_bytes = item + separate + 4 * (1 + uniform) / tile.states
    score_bytes += needs.bias * 4 / tile.group
    size = rows, entropy.read_states, width, linear.workspace
    head = head_plan.Head(*size, row_bytes, score_bytes)
    return head_plan.plan(head, multiprocessors(linear.hidden.device))


def _allocate(
    linear: Linear, states: int, needs: NeedsGrad, rows: int, count: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Memory for the wanted gradients, with zeros where no row and none of the first ``states``
    will write.
    """
    hidden = weight = bias = None
    if needs.hidden:
        dtype = gradient_dtype(linear.hidden.dtype)
        hidden = linear.hidden.new_zeros(linear.hidden.shape, dtype=dtype)
    if needs.weight:
        dtype = gradient_dtype(linear.weight.dtype)
        dtype = fp32_or_fp64(dtype) if rows > count else dtype  # several chunks add up in it
        weight = linear.weight.new_empty(linear.weight.shape, dtype=dtype)
        unwritten = weight[states:] if rows else weight
        if len(unwritten):
            unwritten.zero_()
    if needs.bias:
        make = torch.empty if rows else torch.zeros
        bias = make(len(linear.weight), dtype=torch.float32, device=linear.weight.device)
    return hidden, weight, bias


def touched(entropy: EntropyInputs) -> Tensor:
    """(R,) the touched positions; to count them synchronises the device, unless it is all."""
    from sedd_fast.kernels import head_rows

    positions, device = entropy.x_t.numel(), entropy.x_t.device
    if entropy.graph == "uniform" and entropy.row_weight is None:
        return torch.arange(positions, device=device)
    rows = torch.empty(positions, dtype=torch.int64, device=device)
    count = torch.empty((), dtype=torch.int64, device=device)
    head_rows.launch_touched(entropy, rows, count)
    return rows[: int(count)]
