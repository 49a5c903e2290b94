"""The same problem with the mask at another state: what must not change but for the numbers.

The real tokens keep their order, so an inverse CDF in the order of the states draws the same token.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import Head
from helpers.op_cases import Inputs
from sedd_fast.models.interface import ScoreModel


@dataclass(frozen=True)
class Relabelling:
    """From ``Absorbing(vocab_size)``, whose mask is the last state, to the mask ``mask``."""

    vocab_size: int
    mask: int

    @property
    def graph(self) -> sf.Absorbing:
        return sf.Absorbing(self.vocab_size, self.mask)

    @property
    def last(self) -> sf.Absorbing:
        return sf.Absorbing(self.vocab_size)

    def states(self, x: Tensor) -> Tensor:
        """The new numbers of states."""
        return torch.where(x == self.vocab_size, self.mask, x + (x >= self.mask).long())

    def back(self, x: Tensor) -> Tensor:
        """The numbers of states as they were."""
        return torch.where(x == self.mask, self.vocab_size, x - (x > self.mask).long())

    def rows(self, of_states: Tensor, dim: int = -1) -> Tensor:
        """What belongs to the states along ``dim``, in the new order."""
        order = self.back(torch.arange(self.vocab_size + 1, device=of_states.device))
        return of_states.index_select(dim, order)

    def inputs(self, inputs: Inputs) -> Inputs:
        return replace(
            inputs,
            graph=self.graph,
            log_score=self.rows(inputs.log_score),
            x_t=self.states(inputs.x_t),
            x_0=self.states(inputs.x_0),
        )

    def head(self, head: Head) -> Head:
        bias = None if head.bias is None else self.rows(head.bias, 0)
        weight = self.rows(head.weight, 0)
        return replace(head, inputs=self.inputs(head.inputs), weight=weight, bias=bias)

    def network(self, model: ScoreModel) -> ScoreModel:
        """The same network for the new numbers."""
        return lambda x, sigma: self.rows(model(self.back(x), sigma))
