"""Score entropy of a linear head without its output: a loop over blocks of the vocabulary.

For a block of states: one product makes the raw scores of the touched rows, a kernel adds them to
the rows' sums and turns them in place into their gradient, and two products take that to the
gradients of the hidden states and of this block's part of the weight, which is then finished:

    f = h @ w.T + b          (R, n)  the only thing of its kind that exists
    g = a * exp(f) - b - c * [y == x_0]      in place
    dh += g @ w              (R, H)
    dw = g.T @ h             (n, H)

The gradient of score entropy needs no normaliser, so one pass over the vocabulary is enough (a
cross-entropy needs the logarithm of its sum first). The products are torch's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.head import EntropyRows, Gradients, Linear, NeedsGrad
from sedd_fast.backends.inputs import Entropy

#: Bytes of a row of a block on a CPU: large products run at full speed on blocks of that width, and
#: rows a power of two apart would fall on each other in the caches (6 to 8 % slower).
ROW_BYTES = 4096 - 64
#: Fewest states in a block on a GPU, where few large launches are better, and what they are a
#: multiple of.
FEWEST, MULTIPLE = 1024, 256


@dataclass(frozen=True)
class Block:
    """The head's output for neighbouring states, but for its bias.

    Attributes:
        hidden: (R, H), the rows, in the dtype of the product.
        weight: (n, H), in that dtype too.
        bias: (n,) float32 or wider, contiguous.
        first: the state of column 0.
        scores: (R, n) for the product, where a kernel may put the gradient; empty where the kernel
            keeps neither.
        wide: (R, n) float32 that takes the gradient instead, or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    first: int
    scores: Tensor
    wide: Tensor | None

    def product(self) -> Tensor:
        """Form the scores in their place."""
        return torch.mm(self.hidden, self.weight.T, out=self.scores)

    def again(self, which: Tensor) -> Tensor:
        """The scores of some rows, given by index, once more."""
        return torch.mm(self.hidden[which], self.weight.T)

    @property
    def gradient(self) -> Tensor:
        """(R, n), where the gradient goes."""
        return self.scores if self.wide is None else self.wide


class Kernel(Protocol):
    """What a backend brings along.

    Attributes:
        in_place: whether it forms the scores in memory, for the gradient to replace them; else only
            the gradient is kept.
    """

    in_place: bool

    def beside(self, dtype: torch.dtype, gradient: bool) -> float:
        """Bytes of workspace of its own that a score costs, for operands of that dtype."""

    def empty(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory on the device of ``like``."""

    def visit(self, block: Block, rows: EntropyRows) -> Tensor | None:
        """Form a block's scores and add them to the sums of its rows.

        Where these have a gradient, form it and return its sums over the rows, (n,).
        """


def losses(linear: Linear, entropy: Entropy, kernel: Kernel) -> Tensor:
    """(B * L,) float64 losses: one product."""
    return _Run(linear, entropy, None, NeedsGrad(False, False, False), kernel)()[0]


def losses_and_gradients(
    linear: Linear, entropy: Entropy, lift: Tensor | float, needs: NeedsGrad, kernel: Kernel
) -> tuple[Tensor, Gradients]:
    """Losses (B * L,) float64, and gradients of ``(lift * loss).sum()``: three products.

    Gradients of float16 operands are float32: a loss scaler has yet to lift them into range.
    """
    return _Run(linear, entropy, lift, needs, kernel)()


class _Run:
    """One pass over rows and vocabulary."""

    def __init__(
        self,
        linear: Linear,
        entropy: Entropy,
        lift: Tensor | float | None,
        needs: NeedsGrad,
        kernel: Kernel,
    ) -> None:
        self.linear, self.entropy, self.lift = linear, entropy, lift
        self.needs, self.kernel = needs, kernel
        # A gradient in float16 would lose what a loss scaler has yet to lift.
        self.wide = lift is not None and linear.dtype == torch.float16
        self.keeps = kernel.in_place or (lift is not None and not self.wide)
        self.rows = linear.read(entropy)
        self.states, self.chunk = self._plan()
        self.sum_dtype = torch.promote_types(linear.dtype, torch.float32)
        self.gradients = self._allocate()
        self.bias = linear.bias_fp32()

    def _plan(self) -> tuple[int, int]:
        """States in a block and rows in a chunk, for the workspace: all rows at once where it can.

        A row costs its hidden state, the accumulator of its gradient and its part of a block.
        """
        item, wide = self.linear.dtype.itemsize, 4 * self.wide
        fixed = self.linear.hidden.shape[-1] * (item + self.needs.hidden * max(item, 4) + wide)
        beside = self.kernel.beside(self.linear.dtype, self.lift is not None)
        score = self.keeps * item + wide + beside
        room, count = self.linear.workspace, max(1, len(self.rows))
        states = ROW_BYTES // item
        if self.linear.hidden.is_cuda:
            states = max(FEWEST, int((room // count - fixed) / score) // MULTIPLE * MULTIPLE)
        states = min(states, self.entropy.vocab_size)
        return states, max(1, min(int(room / (fixed + states * score)), count))

    def _allocate(self) -> Gradients:
        linear, needs = self.linear, self.needs
        positions = linear.hidden.shape[:2].numel()
        empty = linear.hidden.new_empty(0)
        hidden = weight = bias = empty
        if needs.hidden:  # a last row takes what belongs to no position
            width, dtype = linear.hidden.shape[-1], values.gradient_dtype(linear.hidden.dtype)
            hidden = linear.hidden.new_zeros(positions + 1, width, dtype=dtype)
        if needs.weight:
            weight = self.kernel.empty(linear.weight.shape, linear.weight, self._weight_dtype())
            weight[self.entropy.vocab_size :] = 0
        if needs.bias:
            bias = linear.weight.new_zeros(linear.weight.shape[0], dtype=self.sum_dtype)
        return Gradients(hidden, weight, bias)

    def _weight_dtype(self) -> torch.dtype:
        """Of the weight, but at least float32 where several chunks of rows add up in it."""
        dtype = values.gradient_dtype(self.linear.weight.dtype)
        return dtype if len(self.rows) <= self.chunk else torch.promote_types(dtype, torch.float32)

    def __call__(self) -> tuple[Tensor, Gradients]:
        positions = self.linear.hidden.shape[:2].numel()
        loss = torch.zeros(positions + 1, dtype=torch.float64, device=self.linear.hidden.device)
        if self.needs.weight and not len(self.rows):
            self.gradients.weight.zero_()
        for number, rows in enumerate(self.rows.split(self.chunk) if len(self.rows) else ()):
            terms = EntropyRows(self.entropy, rows, self.lift)
            to = torch.where(rows < 0, positions, rows)
            accumulated = self._chunk(terms, self.linear.gathered(rows), first=number == 0)
            loss[to] = terms.loss()
            if accumulated is not None:
                self.gradients.hidden[to] = accumulated.to(self.gradients.hidden.dtype)
        return loss[:-1], self._finished()

    def _chunk(self, terms: EntropyRows, h: Tensor, first: bool) -> Tensor | None:
        """All of the vocabulary for some rows h (R, H): the gradient of h."""
        count, dtype = len(h), self.linear.dtype
        scores = self.kernel.empty((self.keeps * count * self.states,), h, dtype)
        wide = None
        if self.wide:
            wide = self.kernel.empty((count * self.states,), h, torch.float32)
        total = h.new_zeros(h.shape, dtype=self.sum_dtype) if self.needs.hidden else None
        for begin in range(0, self.entropy.vocab_size, self.states):
            at = slice(begin, min(begin + self.states, self.entropy.vocab_size))
            w = self.linear.weight[at].to(dtype)  # (n, H)
            block = self._block(h, w, at, scores, wide)
            columns = self.kernel.visit(block, terms)
            if columns is not None:
                self._products(block.gradient, h, w, at, total, first)
                if self.needs.bias:
                    self.gradients.bias[at] += columns
        return total

    def _block(self, h: Tensor, w: Tensor, at: slice, scores: Tensor, wide: Tensor | None) -> Block:
        shape = len(h), len(w)
        if self.keeps:
            scores = scores[: len(h) * len(w)].view(shape)
        into = None if wide is None else wide[: len(h) * len(w)].view(shape)
        return Block(h, w, self.bias[at], at.start, scores, into)

    def _products(
        self, g: Tensor, h: Tensor, w: Tensor, at: slice, total: Tensor | None, first: bool
    ) -> None:
        """g (R, n) into the gradients of h and of the weight."""
        h, w = h.to(g.dtype), w.to(g.dtype)
        if total is not None:
            if total.dtype == g.dtype:
                total.addmm_(g, w)
            else:
                total += g @ w
        if self.needs.weight:
            out = self.gradients.weight[at]
            if not first:
                out += g.T @ h
            elif out.dtype == g.dtype:
                torch.mm(g.T, h, out=out)
            else:
                out.copy_(g.T @ h)

    def _finished(self) -> Gradients:
        """In the shapes and dtypes that the caller is promised."""
        made, needs, shape = self.gradients, self.needs, self.linear.hidden.shape
        return Gradients.of(
            self.linear,
            made.hidden[:-1].view(shape) if needs.hidden else None,
            made.weight if needs.weight else None,
            made.bias if needs.bias else None,
        )
