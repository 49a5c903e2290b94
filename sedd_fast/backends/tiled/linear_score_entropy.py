"""Score entropy of a linear head on a GPU, its scores never stored: gradient in the epilogue.

The loop over blocks of the vocabulary is that of ``blocked_head``. Of a block only the gradient is
kept, for the two products that it enters; a loss alone keeps nothing but sums.
"""

import torch
from torch import Tensor

from sedd_fast.backends.blocked_head import Block, Kernel, losses_and_gradients
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.backends.triton.launch import launched

#: Weights that are converted and added up at a time.
STATES = 2048


def linear_score_entropy(linear: Linear, entropy: EntropyInputs) -> Tensor:
    """(B, L) float32 losses: one product of the touched rows."""
    return linear_score_entropy_with_grad(linear, entropy, None, NeedsGrad())[0]


def linear_score_entropy_with_grad(
    linear: Linear, entropy: EntropyInputs, grad_scale: Tensor | float | None, needs: NeedsGrad
) -> tuple[Tensor, Gradients]:
    """(B, L) float32 losses, and gradients of ``(grad_scale * loss).sum()``: three products."""
    run = _Tiles(linear, entropy)
    tile = run.tiles.tile(linear.dtype)
    # A block takes a sum for every tile's row besides and, for a gradient, for its column.
    sums = 4 / tile.states + (0 if grad_scale is None else 4 / tile.rows)
    kernel = Kernel(run, stores_scores=False, score_bytes=sums)
    arguments = linear, entropy, grad_scale, needs, kernel
    return launched("linear_score_entropy", linear.hidden, losses_and_gradients, *arguments)


class _Tiles:
    """The kernels of one pass over the vocabulary."""

    def __init__(self, linear: Linear, entropy: EntropyInputs) -> None:
        from sedd_fast.kernels import tiled_score_entropy, tiles

        self.kernel, self.tiles = tiled_score_entropy, tiles
        self.weight = linear.weight[: entropy.vocab_size]
        self.bias = linear.bias_fp32()[: len(self.weight)]
        self.uniform = entropy.graph == "uniform"
        self.total: Tensor | None = None
        if self.uniform:  # (H,) the sum of all weights, rounded as the product takes them
            parts = (part.to(linear.dtype) for part in self.weight.split(STATES))
            self.total = torch.stack([part.sum(0, dtype=torch.float32) for part in parts]).sum(0)

    def __call__(self, block: Block, rows: EntropyRows) -> Tensor | None:
        """Add a block to the sums of its rows, which are kept times a and the weight."""
        if block.first == 0:
            self._begin(block, rows)
        operands = self.tiles.Operands(block.hidden, block.weight, block.bias, self._live)
        down, across = self.tiles.tiles(len(block.hidden), len(block.weight), block.hidden.dtype)
        sums = self._empty(across, len(block.hidden))
        columns = self._empty(down, len(block.weight))
        gradient = None if block.gradient is None else (block.gradient, columns)
        self.kernel.launch(operands, self._terms, sums, gradient, block.first, self.uniform)
        a = scale(rows)
        self._sum += sums.sum(0, dtype=torch.float64)
        rows.sum_exp = torch.where(a > 0, self._sum / a, 0)
        return None if gradient is None else columns.sum(0, dtype=block.bias.dtype)

    def _begin(self, block: Block, rows: EntropyRows) -> None:
        """What holds for all blocks of these rows, and what the loss needs of f itself."""
        self._terms = self.kernel.RowTerms(rows.x_t, rows.x_0, *coefficients(rows))
        self._live = (rows.rows >= 0).sum()
        self._sum = torch.zeros_like(rows.sum_exp)
        whole = self.tiles.Operands(block.hidden, self.weight, self.bias, self._live)
        self.kernel.launch_rows(whole, self._terms, self.total, (rows.sum_log, rows.f_x_0))
        if self.uniform:
            rows.sum_log += self.bias.sum(dtype=torch.float64)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.weight.device)


def coefficients(rows: EntropyRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(R,) float32: ln a, the gradient's factor of a * exp(f), and its subtrahends."""
    a = scale(rows)  # 0 where the row has no loss: ln 0, and nothing is added
    log_a = a.log().float()
    if rows.gradient is None:
        return (log_a,) * 4
    ga, gb, gc = rows.gradient
    return log_a, torch.where(a > 0, ga / a, 0).float(), gb.float(), gc.float()


def scale(rows: EntropyRows) -> Tensor:
    """(R,) float64, what exp(f) is multiplied by before it is rounded to float32, 0 in bad rows.

    With the weight in it, that overflows only where the weighted loss does.
    """
    return torch.where(rows.valid, rows.terms.a * rows.weight.abs(), 0)
