"""What a denoising step asks of a row: sums over all states, then the draw.

The kernels add up exp(f - m), m the largest f of a row so far or in a block, so that nothing
overflows at any scale of the logits. For the draw they add up, at the temperature, groups of
states: the sums of all groups tell from which a row draws, and only that group is formed again.
With top-p the rows are formed whole for their draw (:mod:`sedd_fast.backends.row_blocks`).
"""

from dataclasses import replace

import torch
from torch import Tensor

from sedd_fast.backends import row_blocks, values
from sedd_fast.backends.categorical import pick
from sedd_fast.backends.cpp.denoise_blocks import BlocksDenoise
from sedd_fast.backends.cpp.denoise_head import DenoiseHead, RowStatistics
from sedd_fast.backends.cpp.denoise_products import ProductsDenoise
from sedd_fast.backends.cpp.reverse_step import reverse_step
from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import (
    Denoised,
    DenoiseInputs,
    finished,
    head_bias,
    new_results,
    store,
)


def linear_denoise(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """The fields of ``Denoised`` in order, (B, L) each; those not wanted are empty."""
    linear, rows = linear.for_products(), linear.listed()
    kind = BlocksDenoise if linear.dtype.itemsize == 2 else ProductsDenoise
    head = kind(linear, inputs, head_bias(linear, inputs))
    made = new_results(linear, inputs)
    for some in rows.split(head.count()):
        store(made, _results(head, some), some)
    return made


def _results(head: DenoiseHead, rows: Tensor) -> Denoised:
    """What is wanted of rows (R,), -1 for none."""
    hidden = head.linear.gathered(rows)
    found = head.statistics(hidden)
    good = torch.isfinite(found.log_sum) | (rows < 0)
    values.check_rows_drawable(good, rows, head.linear.hidden.shape[1])
    results = {"log_sum_exp": found.log_sum, "embedding": found.embedding}
    if head.inputs.top:
        results["argmax"] = found.argmax
        top = found.top - found.log_sum
        results["max_log_prob"] = top
        results["margin"] = top.exp() - (found.second - found.log_sum).exp()
    if head.inputs.entropy:
        results["entropy"] = found.entropy
    if head.inputs.u is not None:
        results["token"], f = _tokens(head, rows, hidden, found)
        # f is formed again for the draw, and rounds in another way.
        results["log_prob"] = (f - found.log_sum).clamp(max=0)
    return Denoised(**results)


def _tokens(
    head: DenoiseHead, rows: Tensor, hidden: Tensor, found: RowStatistics
) -> tuple[Tensor, Tensor]:
    """The drawn states (R,), and f there."""
    linear, inputs = head.linear, head.inputs
    assert inputs.u is not None
    u = inputs.u.flatten(0, 1)[rows.clamp(min=0), 1]
    token, f = torch.empty_like(rows), torch.empty_like(u)
    if not head.draws:
        whole = replace(linear, workspace=max(1, head.drawing))
        token = row_blocks.draw_whole_rows(whole, inputs, rows, reverse_step)
    for begin in range(0, len(rows), head.drawn):
        some = slice(begin, begin + head.drawn)
        if head.draws:
            group, share = pick(found.group_weights(some), u[some])
            token[some], f[some] = _in_group(head, hidden[some], group, share)
        else:
            own = linear.weight[token[some]].to(hidden.dtype)
            scores = (hidden[some] * own).sum(-1)
            f[some] = finished(scores, head.bias[token[some]], inputs).double()
    return token, f


def _in_group(
    head: DenoiseHead, hidden: Tensor, group: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """The state of a group at which the running sum of weights passes a share, and f there."""
    states = len(head.bias)
    y = group[:, None] * head.group + torch.arange(head.group)  # (R, n)
    beyond = y >= states
    y = y.clamp(max=states - 1)
    f = finished(head.group_scores(hidden, group), head.bias[y], head.inputs)
    f = f.masked_fill(beyond, -torch.inf)
    scaled = (f - f.amax(1, keepdim=True)).double() * head.inputs.inverse_temperature
    chosen, _ = pick(scaled.exp(), share)
    chosen = chosen[:, None]
    return y.gather(1, chosen).squeeze(1), f.gather(1, chosen).squeeze(1).double()
