"""What the two ways to the statistics of a denoising step have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import DenoiseInputs

#: Rows drawn at a time, at most: more are no faster.
MOST_DRAWN = 64


class RowStatistics(NamedTuple):
    """Of rows, (R,) each.

    Attributes:
        log_sum: ln of the sum of exp(f); NaN or infinite where there is no distribution.
        entropy: ln sum - sum of p f, f relative to the largest so that no digits are lost.
        top, second, argmax: the two largest f, and the first state of the first.
        embedding: (R, H) the mean of the weights under p, or None.
        group_weights: of some of the rows, (r, groups) sums at the temperature, all relative
            to the largest f of the row.
    """

    log_sum: Tensor
    entropy: Tensor
    top: Tensor
    second: Tensor
    argmax: Tensor
    embedding: Tensor | None
    group_weights: Callable[[slice], Tensor]


class DenoiseHead(ABC):
    """A head and what is asked of it.

    Attributes:
        bias: (dim,), -inf at the states that have no probability.
        draws: whether groups are added up for a draw; else whole rows are formed for it, if any.
        drawing: bytes of the workspace that the draw takes.
        room: bytes of what is left.
        group: states of one.
    """

    group: int

    def __init__(self, linear: Linear, inputs: DenoiseInputs, bias: Tensor) -> None:
        self.linear, self.inputs, self.bias = linear, inputs, bias
        self.draws = inputs.u is not None and inputs.top_p == 1
        part = 0 if inputs.u is None else 8 if self.draws else 2
        self.drawing = linear.workspace // part if part else 0
        self.room = linear.workspace - self.drawing

    @abstractmethod
    def count(self) -> int:
        """Rows at a time."""

    @abstractmethod
    def statistics(self, hidden: Tensor) -> RowStatistics:
        """Of rows (R, H) in the dtype of the products."""

    @abstractmethod
    def group_scores(self, hidden: Tensor, group: Tensor) -> Tensor:
        """(R, group) the scores without a bias of a group (R,) of states each.

        Beyond the last state there may be any finite number.
        """

    @property
    def drawn(self) -> int:
        """Rows drawn at a time: the weights of their groups are several float64 numbers each."""
        return max(1, min(MOST_DRAWN, self.drawing // (32 * self.groups)))

    @property
    def groups(self) -> int:
        """How many there are."""
        return -(-len(self.bias) // self.group)
