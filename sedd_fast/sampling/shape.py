"""Temperature and top-p: which token, not when. They leave the model's law.

Both change the shares s_y / S of the states that a position may jump to and keep their sum S
(``sedd_fast.backends.reference.shares``), so that the probability of a jump is what it was. For the
absorbing graph the states are all real tokens, and a step's probability of unmasking is the same to
the last digit; with the uniform graph and "analytic", whose weights are not proportional to the
scores, only nearly so. Draws take them inside the kernels (:func:`sedd_fast.reverse_step`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sedd_fast.backends.reference import reshaped
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph

PIECE = 1 << 22  #: scores that are worked on together


class Options(TypedDict):
    """Arguments of :func:`sedd_fast.reverse_step`."""

    temperature: float
    top_p: float


@dataclass(frozen=True)
class Shape:
    """What is done to the shares of the tokens; nothing by default.

    Args:
        temperature: T > 0; below 1 likely tokens gain.
        top_p: p in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        arguments.check_shares(self.temperature, self.top_p)

    def options(self) -> Options:
        """As the operations take them."""
        return {"temperature": self.temperature, "top_p": self.top_p}

    @property
    def is_identity(self) -> bool:
        """Nothing changes."""
        return self.temperature == 1 and self.top_p == 1

    def __call__(self, log_score: Tensor, x: Tensor, graph: Graph) -> Tensor:
        """Log scores (B, L, dim) with the new shares, float32 or wider; -inf for what is dropped.

        Rows of absorbing positions that are not masked, which nobody reads, stay as they are.
        """
        if self.is_identity:
            return log_score
        shaped = log_score.to(torch.promote_types(log_score.dtype, torch.float32), copy=True)
        moving = torch.ones_like(x, dtype=torch.bool)
        if graph.mask_index is not None:
            moving = x == graph.mask_index
        rows, own = shaped[moving], x[moving]  # (N, dim), (N,)
        count = max(1, PIECE // graph.dim)
        parts = [
            reshaped(some.scatter(-1, state[:, None], -torch.inf), self.temperature, self.top_p)
            for some, state in zip(rows.split(count), own.split(count), strict=True)
        ]
        shaped[moving] = torch.cat(parts) if parts else rows
        return shaped
