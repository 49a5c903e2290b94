"""Weighted cross entropy of a linear head on a GPU: cuBLAS products, and a kernel on every block.

Rows are gathered, blocks of their output formed and summed, the losses finished, and then every
block becomes its gradient in place, from which products form the gradients of hidden states and
weight. Nothing synchronises the device but the count of the rows, without ``linear.rows``.
"""

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64, gradient_dtype
from sedd_fast.backends.head import Gradients, Linear, NeedsGrad
from sedd_fast.backends.head_plan import Head
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import CrossEntropyInputs
from sedd_fast.backends.triton.launch import launched
from sedd_fast.backends.triton.softmax_blocks import Cuts, Scores


def linear_cross_entropy(linear: Linear, entropy: CrossEntropyInputs) -> tuple[Tensor, Tensor]:
    """(B, L) losses, and float64 logarithms of the rows' sums: one product."""
    run = _launched(linear, entropy, NeedsGrad(), None)
    return run.loss, run.log_sum


def linear_cross_entropy_with_grad(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) losses, and the gradients of their sum: three products, or four."""
    run = _launched(linear, entropy, needs, None)
    return run.loss, run.gradients()


def linear_cross_entropy_backward(
    linear: Linear, entropy: CrossEntropyInputs, log_sum: Tensor, needs: NeedsGrad
) -> Gradients:
    """The gradients of the sum of the losses, whose log_sum is known: three products."""
    return _launched(linear, entropy, needs, log_sum).gradients()


def _launched(
    linear: Linear, entropy: CrossEntropyInputs, needs: NeedsGrad, log_sum: Tensor | None
) -> "_Run":
    run = _Run(linear, entropy, needs, log_sum)
    launched("linear_cross_entropy", linear.hidden, run)
    return run


class _Run:
    """One call: losses, log_sum, and the wanted gradients, of all rows that are read.

    Args:
        known: log_sum of the rows, if it is known; then no losses are formed.
    """

    def __init__(
        self,
        linear: Linear,
        entropy: CrossEntropyInputs,
        needs: NeedsGrad,
        known: Tensor | None,
    ) -> None:
        from sedd_fast.kernels import softmax_blocks, softmax_rows

        self.blocks, self.rows = softmax_blocks, softmax_rows
        self.linear, self.entropy, self.needs = linear, entropy, needs
        self.index = linear.read(entropy).contiguous()
        self.targets = softmax_rows.Targets(
            entropy.target.contiguous(), entropy.row_weight.contiguous()
        )
        self.is_known, like = known is not None, self.targets.row_weight
        self.loss = like.new_zeros(0 if self.is_known else like.shape, dtype=torch.float32)
        self.log_sum = torch.zeros_like(like) if known is None else known.contiguous()
        self.grad_dtype = gradient_dtype(linear.dtype) if any(needs) else linear.dtype
        self.tiles = softmax_blocks.tiles(len(linear.weight), linear.dtype)
        self.cuts = self._cuts()
        self.of_hidden, self.of_weight, self.of_bias = self._allocate()

    def _cuts(self) -> Cuts:
        linear, needs = self.linear, self.needs
        item, width = linear.dtype.itemsize, linear.hidden.shape[2]
        separate = self.grad_dtype.itemsize * (self.grad_dtype != linear.dtype)
        row_bytes = width * (item + 4 * needs.hidden + separate) + 6 * 4
        row_bytes += 8 * self.tiles * (not self.is_known)
        tile = self.blocks.tile_of(linear.dtype)
        score_bytes = item + separate + needs.bias * 4 / tile.group
        in_float32 = gradient_dtype(linear.weight.dtype).itemsize == 4
        head = Head(
            len(self.index), len(linear.weight), width, linear.workspace, row_bytes, score_bytes,
            hidden=needs.hidden, weight=needs.weight,
            sum_bytes=0 if in_float32 or not needs.weight else 4 * linear.weight.numel(),
        )  # fmt: skip
        return Cuts.of(linear, head, any(needs) and not self.is_known, needs.hidden)

    def _allocate(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Memory for the wanted gradients, with zeros where no row will write."""
        linear, needs, make = self.linear, self.needs, torch.empty_like
        hidden = weight = bias = None
        if not len(self.index):
            make = torch.zeros_like
        if needs.hidden:
            dtype = gradient_dtype(linear.hidden.dtype)
            hidden = linear.hidden.new_zeros(linear.hidden.shape, dtype=dtype)
        if needs.weight:
            dtype = gradient_dtype(linear.weight.dtype)
            several = len(self.index) > self.cuts.rows
            dtype = fp32_or_fp64(dtype) if several else dtype  # the parts add up in it
            weight = make(linear.weight, dtype=dtype, memory_format=torch.contiguous_format)
        if needs.bias:
            bias = make(linear.weight[:, 0], dtype=torch.float32)
        return hidden, weight, bias

    def gradients(self) -> Gradients:
        """The gradients, in the dtypes that the operation returns."""
        return Gradients.of(self.linear, self.of_hidden, self.of_weight, self.of_bias)

    def __call__(self) -> None:
        scores = Scores(self.linear, self.entropy, self.cuts, len(self.index))
        gradient = scores.memory
        if self.grad_dtype != self.linear.dtype:
            gradient = torch.empty_like(scores.memory, dtype=self.grad_dtype)
        parts = self.index.split(self.cuts.rows) if len(self.index) else ()
        for number, index in enumerate(parts):
            _Part(self, scores, index).run(gradient, again=number > 0)


class _Part:
    """Some rows of a call."""

    def __init__(self, run: _Run, scores: Scores, index: Tensor) -> None:
        self.of, self.scores, self.index = run, scores, index
        size, like = len(index), run.linear.hidden
        self.hidden = like.new_empty(size, like.shape[2], dtype=run.linear.dtype)
        self.target = like.new_empty(size, dtype=torch.int32)
        self.terms = like.new_empty(4, size, dtype=torch.float32)
        out = self.hidden, self.target
        run.rows.launch_gather(index, like, len(run.linear.weight), run.targets, out)

    def run(self, gradient: Tensor, again: bool) -> None:
        """The losses, and the gradients, which are added to those of other rows if ``again``."""
        self._finish()
        if any(self.of.needs):
            self._gradients(gradient, again)

    def _finish(self) -> None:
        """log_sum and the losses, unless they are known, and the terms of the gradient."""
        run, scores = self.of, self.scores
        partial = picked = None
        if not run.is_known:
            partial = self.terms.new_empty(2, run.tiles, len(self.index))
            picked = torch.empty_like(self.terms[0])
            for at in scores.cuts.blocks:
                scores.form(self.hidden, at, scores.weight(at))
                block = scores.block(len(self.index), at)
                run.blocks.launch_sums(block, self.target, partial, picked)
        finished = run.rows.Finished(
            partial, picked, scores.bias, run.log_sum, run.loss, self.terms
        )
        of_loss = len(run.linear.weight), run.entropy.z_loss, run.is_known
        run.rows.launch_finish(self.index, run.targets, finished, *of_loss)

    def _gradients(self, memory: Tensor, again: bool) -> None:
        run, scores, size = self.of, self.scores, len(self.index)
        factor = self.hidden.to(run.grad_dtype)  # products take operands of one dtype
        total = None
        if run.of_hidden is not None:
            total = torch.empty_like(self.hidden, dtype=torch.float32)
        columns = None
        if run.of_bias is not None:
            group = run.blocks.tile_of(run.linear.dtype).group
            columns = self.terms.new_empty(-(-size // group), scores.memory.shape[1])
        for at in scores.cuts.blocks:
            kept = scores.cuts.kept
            w = None if kept and total is None else scores.weight(at)
            if w is not None and not kept:
                scores.form(self.hidden, at, w)
            g = scores.columns(at, memory[:size])
            block, n = scores.block(size, at), at.stop - at.start
            run.blocks.launch_gradient(block, self.target, self.terms, g[:, :n], columns)
            if total is not None and w is not None:
                accumulate(total, g, w.to(g.dtype), again=at.start > 0)
            if run.of_weight is not None:
                accumulate(run.of_weight[at], g[:, :n].T, factor, again)
            if run.of_bias is not None and columns is not None:
                run.blocks.launch_columns(columns, run.of_bias[at], n, again)
        if total is not None and run.of_hidden is not None:
            run.rows.launch_scatter(self.index, total, run.of_hidden)
