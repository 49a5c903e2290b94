"""linear_denoise on a GPU: cuBLAS products, and statistics of groups of states.

A kernel reads every block of the output once, and one program a row combines what it stored. The
embedding takes the probabilities of every block, and a product with the weight. With a top-p below
1 the tokens are drawn first, from rows that are formed whole.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sedd_fast.backends import row_blocks
from sedd_fast.backends.head import Linear
from sedd_fast.backends.head_plan import Head
from sedd_fast.backends.products import accumulate
from sedd_fast.backends.softmax import DenoiseInputs, new_results
from sedd_fast.backends.triton.launch import launched, unsupported
from sedd_fast.backends.triton.reverse_step import reverse_step
from sedd_fast.backends.triton.softmax_blocks import Cuts, Scores

if TYPE_CHECKING:
    from sedd_fast.kernels.linear_denoise import Draw


def linear_denoise(linear: Linear, inputs: DenoiseInputs) -> tuple[Tensor, ...]:
    """The fields of ``Denoised`` in order, (B, L) each; those not wanted are empty.

    A row that gives no distribution has the token -1.

    Raises:
        RuntimeError: top-p is below 1, and rows have more states than the kernel of a step can
            hold.
    """
    if inputs.u is not None and inputs.top_p < 1:
        masked = linear.weight.new_empty(0, len(linear.weight) + 1)
        if reason := unsupported("reverse_step", masked):
            raise RuntimeError(
                "linear_denoise with top_p < 1 cannot run on the 'triton' backend: its "
                f'{reason}; use_backend("reference") has no such limit'
            )
    return launched("linear_denoise", linear.hidden, _Run(linear, inputs))


class _Run:
    """One call."""

    def __init__(self, linear: Linear, inputs: DenoiseInputs) -> None:
        from sedd_fast.kernels import denoise_statistics, softmax_blocks, softmax_rows
        from sedd_fast.kernels import linear_denoise as kernel

        self.kernel, self.statistics = kernel, denoise_statistics
        self.blocks, self.rows = softmax_blocks, softmax_rows
        self.linear, self.inputs = linear, inputs
        self.index = linear.listed().contiguous()
        self.groups = -(-len(linear.weight) // denoise_statistics.group_states(linear.dtype))
        self.draws = inputs.u is not None
        self.given = self.draws and inputs.top_p < 1
        tempered = self.draws and not self.given and inputs.temperature != 1
        self.wanted = tempered, inputs.entropy, inputs.top
        self.inverse_temperature = inputs.inverse_temperature if tempered else 1.0
        self.cuts = self._cuts()

    def _cuts(self) -> Cuts:
        linear, embeds = self.linear, self.inputs.embedding
        tempered, entropy, top = self.wanted
        item, width = linear.dtype.itemsize, linear.hidden.shape[2]
        row_bytes = width * (item + 4 * embeds) + 4 * 4 * embeds
        row_bytes += self.groups * 4 * (3 + tempered + entropy + 2 * top)
        head = Head(
            len(self.index), len(linear.weight), width, linear.workspace, row_bytes, item,
            hidden=embeds, weight=False,
        )  # fmt: skip
        return Cuts.of(linear, head, twice=embeds, formed_reads=True)

    def __call__(self) -> tuple[Tensor, ...]:
        linear, inputs, count = self.linear, self.inputs, self.cuts.rows
        tokens = None
        if self.given:
            tokens = row_blocks.draw_whole_rows(linear, inputs, self.index, reverse_step)
        u = None if inputs.u is None else inputs.u.contiguous()
        *numbers, embedding = out = new_results(linear, inputs)
        scores = Scores(linear, inputs, self.cuts, len(self.index))
        for first in range(0, len(self.index), count):
            at = slice(first, first + count)
            draw = self.kernel.Draw(self.index[at], u, None if tokens is None else tokens[at])
            self._part(scores, draw, numbers, embedding)
        return out

    def _part(self, scores: Scores, draw: "Draw", numbers: list[Tensor], embedding: Tensor) -> None:
        """The results of some rows."""
        linear, size = self.linear, len(draw.index)
        hidden = linear.hidden.new_empty(size, linear.hidden.shape[2], dtype=linear.dtype)
        self.rows.launch_gather(
            draw.index, linear.hidden, len(linear.weight), None, (hidden, draw.index)
        )
        made = self.statistics.Statistics.like(hidden, self.groups, *self.wanted)
        for at in scores.cuts.blocks:
            scores.form(hidden, at, scores.weight(at))
            block = scores.block(size, at)
            self.statistics.launch_statistics(block, made, self.inverse_temperature)
        terms = None
        if self.inputs.embedding:
            terms = hidden.new_empty(4, size, dtype=torch.float32)
        head = self.kernel.Head(
            hidden, linear.weight, scores.bias, scores.softcap, scores.whole(size)
        )
        results = self.kernel.Results(*numbers, terms)
        self.kernel.launch_choose(made, head, draw, results, self.inverse_temperature)
        if terms is not None:
            total = self._embedded(scores, hidden, terms)
            self.rows.launch_scatter(draw.index, total, embedding)

    def _embedded(self, scores: Scores, hidden: Tensor, terms: Tensor) -> Tensor:
        """(R, H) float32: the sum of p(y) weight_y over all states y."""
        total = torch.empty_like(hidden, dtype=torch.float32)
        for at in scores.cuts.blocks:
            w = scores.weight(at)
            if not scores.cuts.kept:
                scores.form(hidden, at, w)
            block = scores.block(len(hidden), at)
            self.blocks.launch_gradient(block, None, terms, block.scores, None)
            p = scores.columns(at, scores.memory[: len(hidden)])
            accumulate(total, p, w, again=at.start > 0)
        return total
