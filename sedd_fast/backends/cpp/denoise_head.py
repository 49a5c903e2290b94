"""What the two ways to the statistics of a denoising step have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import DenoiseInputs


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
        draws: whether groups are added up for a draw.
        group: states of one.
    """

    group: int

    def __init__(self, linear: Linear, inputs: DenoiseInputs, bias: Tensor) -> None:
        self.linear, self.inputs, self.bias = linear, inputs, bias
        self.draws = inputs.u is not None and inputs.top_p == 1

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
    def groups(self) -> int:
        """How many there are."""
        return -(-len(self.bias) // self.group)
