"""The autoregressive baseline's objective: the log probability of the next token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sedd_fast.models.autoregressive import NextTokenRequest
from sedd_fast.models.interface import takes_request, warn_of_evaluation_mode
from sedd_fast.ops._arguments import check_choice

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
        model: Callable[..., Tensor],
        x_0: Tensor,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        warn_of_evaluation_mode(model)
        if self.reduction == "none":
            return self._answered(model, x_0, NextTokenRequest()).sum(-1)
        # The factor of a scalar has to be known in the forward, where its gradient is formed.
        weight = torch.full(x_0.shape, 1 / max(len(x_0), 1), dtype=torch.float64, device=x_0.device)
        loss = self._answered(model, x_0, NextTokenRequest(weight, "sum"))
        return loss if len(x_0) else loss + torch.nan  # the mean of no sequence

    def _answered(
        self, model: Callable[..., Tensor], x_0: Tensor, request: NextTokenRequest
    ) -> Tensor:
        if takes_request(model, None, NextTokenRequest):
            return model(x_0, request)
        return request.of_logits(model(x_0), x_0)
