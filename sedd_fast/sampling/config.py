"""What a sampler is asked for (``Run``), what it plans (``Stage``), and the grid of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.models.interface import ScoreModel
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise
from sedd_fast.sampling.draw import Drawing
from sedd_fast.sampling.remask import Remask


@dataclass(frozen=True)
class Run:
    """The settings of one run.

    Args:
        noise: the schedule the network was trained with.
        drawing: how tokens are drawn; it knows the graph.
        method: a key of ``sedd_fast.sampling.methods.SAMPLERS``.
        steps: intervals of the grid of times; None (method "hit" only): one position at a time.
        denoise: end with a stage that removes all noise left at ``eps``.
        eps: the last time of the grid.
        theta: "theta_trapezoidal": where in a step the second network call is made, in (0, 1).
        remask: "analytic" on the absorbing graph: tokens that a step takes back.

    Raises:
        TypeError, ValueError: a setting of the wrong kind, out of range, or not for this graph.
    """

    noise: Noise
    drawing: Drawing
    method: str = "analytic"
    steps: int | None = 128
    denoise: bool = True
    eps: float = 1e-5
    theta: float = 0.5
    remask: Remask | None = None

    def __post_init__(self) -> None:
        timesteps(1 if self.steps is None else self.steps, self.eps)
        if not 0 < self.theta < 1:
            raise ValueError(
                f"theta must lie in (0, 1), got {self.theta}; 0.5 is usual: the second network "
                "call in the middle of the step"
            )
        self._check_method()
        self._check_options()

    def _check_method(self) -> None:
        if self.method == "hit" and self.graph.mask_index is None:
            raise ValueError(
                "method 'hit' needs the absorbing graph, where a position moves once and at a time "
                f"that the text does not change; the graph is {self.graph.kind}: take 'analytic'"
            )
        if self.steps is None and self.method != "hit":
            raise ValueError(
                "steps=None, one position at a time, goes with method 'hit' only, not with "
                f"{self.method!r}; give a number of steps"
            )

    def _check_options(self) -> None:
        process = (self.graph.kind, self.method)
        if self.remask is not None and process != ("absorbing", "analytic"):
            raise ValueError(
                "remask goes with the absorbing graph and method 'analytic', not with the "
                f"{self.graph.kind} graph and {self.method!r}"
            )
        legacy = self.drawing.legacy_fp32_gumbel
        if legacy and self.method not in ("analytic", "euler"):
            raise ValueError(
                "legacy_fp32_gumbel repeats the original's samplers, 'analytic' and 'euler', not "
                f"{self.method!r}"
            )

    @property
    def times(self) -> Tensor:
        """The grid, (steps + 1,) float64."""
        assert self.steps is not None, "only 'hit' goes without a grid, and does not ask"
        return timesteps(self.steps, self.eps)

    @property
    def graph(self) -> Graph:
        return self.drawing.graph


@dataclass(frozen=True)
class Stage:
    """One planned step.

    Attributes:
        t: the time that it reaches.
        advance: ``(model, x (B, L)) -> x (B, L)``.
    """

    t: float
    advance: Callable[[ScoreModel, Tensor], Tensor]


#: ``plan(run, x)``: every stage from the tokens x (B, L) at time 1 to the end.
Plan = Callable[[Run, Tensor], list[Stage]]


def timesteps(steps: int, eps: float = 1e-5, device: torch.device | str | None = None) -> Tensor:
    """The times of a sampler: (steps + 1,) float64, evenly spaced from 1 down to ``eps``.

    Raises:
        TypeError: ``steps`` is not an int.
        ValueError: ``steps`` below 1, ``eps`` outside (0, 1).
    """
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}; 64 to 1024 are usual")
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}; the usual value is 1e-5")
    return torch.linspace(1, eps, steps + 1, dtype=torch.float64, device=device)
