"""The autoregressive baseline's objective: the log probability of the next token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.ops._arguments import check_choice, reduce

_Reduction = Literal["none", "mean"]


@dataclass(frozen=True)
class NextTokenLoss:
    """-ln p of a sequence, the sum over its tokens, in nats; the trainer's objective.

    Args:
        reduction: over sequences: "none" gives (B,), "mean" a scalar.
        sampling_eps: not used; the trainer passes times in (sampling_eps, 1] to every objective,
            and next-token prediction has none.
    """

    in_nats: ClassVar[bool] = True  # as of `losses.Objective`

    reduction: _Reduction = "none"
    sampling_eps: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, get_args(_Reduction))

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x_0: Tensor,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        logits = model(x_0)  # (B, L, V)
        loss = F.cross_entropy(logits.transpose(1, 2), x_0, reduction="none").sum(-1)
        return reduce(loss, self.reduction)
