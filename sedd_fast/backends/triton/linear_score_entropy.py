"""Score entropy of a linear head on a GPU: cuBLAS products, and a kernel in place on every block.

The loop of :mod:`sedd_fast.backends.blocked_head` for a device on which every launch counts. It
launches five kernels for a block of the vocabulary (scores, their gradient in place, sums, and the
products with hidden states and weight), and at most ten besides. The host must know how many rows
were touched: without ``linear.rows`` they are counted first, which synchronises the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import head_plan
from sedd_fast.backends.dtypes import gradient_dtype
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.triton.launch import launching_triton

if TYPE_CHECKING:
    from sedd_fast.kernels.head_rows import Process
    from sedd_fast.kernels.linear_score_entropy import Sums


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) float32 losses: one product of the touched rows."""
    return _run(linear, entropy, 0.0, NeedsGrad(False, False, False))[0]


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) float32 losses, and gradients of ``(grad_scale * loss).sum()``: three products."""
    return _run(linear, entropy, grad_scale, needs)


def _run(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    with launching_triton("linear_score_entropy", linear.hidden):
        return _Run(linear, entropy, grad_scale, needs)()


class _Run:
    """One pass over rows and vocabulary."""

    def __init__(
        self, linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float, needs: NeedsGrad
    ) -> None:
        from sedd_fast.kernels.head_rows import Process

        self.linear, self.needs, self.vocab = linear, needs, entropy.vocab_size
        self.scale = grad_scale.contiguous() if isinstance(grad_scale, Tensor) else grad_scale
        entropy = entropy.contiguous()
        small = entropy.sigma, entropy.x_t, entropy.x_0, entropy.row_weight
        kind = entropy.graph, entropy.vocab_size, entropy.scale_by_sigma
        self.process = Process(*small, *kind)
        self.uniform = entropy.graph == "uniform"
        self.bias = None if linear.bias is None else linear.bias.contiguous()
        self.with_grad = needs.hidden or needs.weight or needs.bias
        # A gradient in float16 would lose what a loss scaler has yet to bring into range.
        half = linear.dtype == torch.float16
        self.grad_dtype = torch.float32 if half and self.with_grad else linear.dtype
        self.rows = self._rows(linear.rows)
        self.plan = self._plan()

    def _rows(self, given: Tensor | None) -> Tensor:
        """(R,) positions, -1 for none; if none are given, counting them synchronises the device."""
        if given is not None:
            return given.contiguous()
        return touched(self.process)

    def _plan(self) -> head_plan.Plan:
        from sedd_fast.kernels import linear_score_entropy as kernel

        item, width = self.linear.dtype.itemsize, self.linear.hidden.shape[2]
        tile, apart = kernel.TABLE[item], 4 * (self.grad_dtype != self.linear.dtype)
        row = width * (item + 4 * self.needs.hidden + apart) + 5 * 4 + 2 * 4 + 2 * 8
        score = item + apart + 4 * (1 + self.uniform) / tile.states
        score += self.needs.bias * 4 / tile.group
        size = len(self.rows), self.vocab, width, self.linear.workspace
        from sedd_fast.kernels.settings import multiprocessors

        count = multiprocessors(self.linear.hidden.device)
        return head_plan.plan(head_plan.Head(*size, row, score), count)

    def __call__(self) -> tuple[Tensor, Gradients]:
        shape = self.linear.hidden.shape
        self.loss = self.linear.hidden.new_zeros(shape[:2], dtype=torch.float32)
        self.gradients = self._allocate()
        parts = self.rows.split(self.plan.rows) if len(self.rows) else ()
        for number, rows in enumerate(parts):
            _Part(self, rows, again=number > 0)()
        return self.loss, self._finished()

    def _allocate(self) -> Gradients:
        """Zeros where no row and no state will write."""
        linear, needs = self.linear, self.needs
        hidden = weight = bias = linear.hidden.new_empty(0)
        if needs.hidden:
            dtype = gradient_dtype(linear.hidden.dtype)
            hidden = linear.hidden.new_zeros(linear.hidden.shape, dtype=dtype)
        if needs.weight:
            dtype = gradient_dtype(linear.weight.dtype)
            if len(self.rows) > self.plan.rows:  # several parts add up in it
                dtype = torch.promote_types(dtype, torch.float32)
            weight = torch.empty(linear.weight.shape, dtype=dtype, device=linear.weight.device)
            unwritten = weight[self.vocab :] if len(self.rows) else weight
            if len(unwritten):
                unwritten.zero_()
        if needs.bias:
            make = torch.empty if len(self.rows) else torch.zeros
            bias = make(len(linear.weight), dtype=torch.float32, device=linear.weight.device)
        return Gradients(hidden, weight, bias)

    def _finished(self) -> Gradients:
        """In the dtypes that the caller is promised."""
        made, needs = self.gradients, self.needs
        return Gradients.of(
            self.linear,
            made.hidden if needs.hidden else None,
            made.weight if needs.weight else None,
            made.bias if needs.bias else None,
        )


class _Part:
    """Some rows, through all of the vocabulary."""

    def __init__(self, run: _Run, rows: Tensor, again: bool) -> None:
        from sedd_fast.kernels import head_rows

        self.run, self.rows, self.again = run, rows, again
        linear, count = run.linear, len(rows)
        self.hidden = self._empty(count, linear.hidden.shape[2], dtype=linear.dtype)
        self.tokens = self._empty(2, count, dtype=torch.int32)
        self.terms = self._empty(5, count)
        self.sums = self._empty(1 + run.uniform, count, dtype=torch.float64)
        out = self.hidden, self.tokens, self.terms
        operands = linear.hidden, linear.weight, run.bias
        head_rows.launch_gather(run.process, rows, operands, run.scale, out)
        # Products take operands of one dtype.
        self.factor = self.hidden.to(run.grad_dtype) if run.with_grad else self.hidden
        self.total = self._empty(*self.hidden.shape) if run.needs.hidden else None

    def __call__(self) -> None:
        from sedd_fast.kernels import head_rows
        from sedd_fast.kernels import linear_score_entropy as kernel

        run, states = self.run, self.run.plan.states
        scores = self._empty(len(self.rows), states, dtype=run.linear.dtype)
        gradient = scores
        if run.grad_dtype != scores.dtype:
            gradient = self._empty(*scores.shape, dtype=run.grad_dtype)
        partial = kernel.Sums.like(scores, run.uniform, run.needs.bias)
        for begin in range(0, run.vocab, states):
            at = slice(begin, min(begin + states, run.vocab))
            self._block(at, scores[:, : at.stop - begin], gradient, partial)
        into = None if self.total is None else (self.total, run.gradients.hidden)
        head_rows.launch_scatter(run.process, self.rows, self.terms, self.sums, run.loss, into)

    def _block(self, at: slice, scores: Tensor, gradient: Tensor, partial: Sums) -> None:
        """The scores (R, n) of some states, their gradient in place, and where that goes."""
        from sedd_fast.kernels import linear_score_entropy as kernel

        run = self.run
        w = run.linear.weight[at].to(run.linear.dtype)
        torch.mm(self.hidden, w.T, out=scores)
        bias = None if run.bias is None else run.bias[at]
        g = gradient[:, : len(w)] if run.with_grad else None
        kernel.launch(scores, bias, g, (self.tokens, self.terms), partial, at.start, run.uniform)
        if g is not None:
            self._products(g, w.to(g.dtype), at)
        of_bias = None
        if run.needs.bias:
            of_bias = run.gradients.bias[at.start : at.stop if at.stop < run.vocab else None]
        kernel.launch_sums(partial, self.sums, of_bias, len(w), at.start > 0, self.again)

    def _products(self, g: Tensor, w: Tensor, at: slice) -> None:
        """g (R, n) into the gradients of the hidden states and of the weight."""
        if self.total is not None:
            accumulate(self.total, g, w, at.start > 0)
        if self.run.needs.weight:
            accumulate(self.run.gradients.weight[at], g.T, self.factor, self.again)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.rows.device)


def touched(process: Process) -> Tensor:
    """(R,) the touched positions; to count them synchronises the device, unless it is all."""
    from sedd_fast.kernels import head_rows

    positions, device = process.x_t.numel(), process.x_t.device
    if process.graph == "uniform" and process.row_weight is None:
        return torch.arange(positions, device=device)
    rows = torch.empty(positions, dtype=torch.int64, device=device)
    count = torch.empty((), dtype=torch.int64, device=device)
    head_rows.launch_touched(process, rows, count)
    return rows[: int(count)]
