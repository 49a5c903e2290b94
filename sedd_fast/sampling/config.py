"""The settings of a sampler (``SamplerConfig``), and the grid of times."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.names import Method
from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.dense_graph import DenseGraph
from sedd_fast.process.graphs import Graph
from sedd_fast.sampling.remask import Remask


@dataclass(frozen=True)
class SamplerConfig:
    """How to sample: the keyword arguments that ``sample`` and ``infill`` share.

    Args:
        method: one of ``sedd_fast.sampling.METHODS``.
        steps: number of intervals of the time grid; None (only for "hit"): one position at a time.
        denoise: end with a step that removes all noise left at ``eps``.
        eps: the last time of the grid.
        theta: for "theta_trapezoidal": where in a step the second network call is made, in (0, 1).
        remask: for "analytic" on the absorbing graph: which tokens a step masks again.
        temperature, top_p: which token a position jumps to (``token_filter.py``).
        legacy_fp32_gumbel: draw as the original code does (``legacy_gumbel.py``).

    Raises:
        TypeError, ValueError: a setting has the wrong type, is out of range or does not fit the
            method.

    Example:
        >>> config = SamplerConfig("hit", steps=256)
        >>> tokens = sample(model, graph, noise, (4, 1024), **vars(config))
    """

    method: Method = "analytic"
    steps: int | None = 128
    denoise: bool = True
    eps: float = 1e-5
    theta: float = 0.5
    remask: Remask | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    legacy_fp32_gumbel: bool = False

    def __post_init__(self) -> None:
        arguments.check_numbers(theta=self.theta)
        grid = timesteps(1 if self.steps is None else self.steps, self.eps)
        if self.steps is not None:
            object.__setattr__(self, "steps", len(grid) - 1)
        arguments.check_shares(self.temperature, self.top_p)
        if not 0 < self.theta < 1:
            raise ValueError(
                f"theta must lie in (0, 1), got {self.theta}; 0.5 is usual: the second network "
                "call in the middle of the step"
            )
        if self.steps is None and self.method != "hit":
            raise ValueError(
                "steps=None, one position at a time, works with method 'hit' only, not with "
                f"{self.method!r}; give a number of steps"
            )
        if self.legacy_fp32_gumbel and self.method not in ("analytic", "euler"):
            raise ValueError(
                "legacy_fp32_gumbel repeats the original's samplers, 'analytic' and 'euler', not "
                f"{self.method!r}"
            )

    def check_graph(self, graph: Graph) -> None:
        """Check that a sampler with these settings can draw from this graph.

        Raises:
            TypeError: ``graph`` is not a graph.
            ValueError: a setting does not work with this graph, or with the backend in use.
        """
        dense = isinstance(graph, DenseGraph)
        if not dense:
            arguments.check_graph(graph)
        if self.method == "hit" and graph.mask_index is None:
            raise ValueError(
                "method 'hit' needs the absorbing graph, where a position moves once and at a time "
                f"that does not depend on the text; the graph is {graph.kind}: use 'analytic'"
            )
        if self.remask is not None and (graph.kind, self.method) != ("absorbing", "analytic"):
            raise ValueError(
                "remask works with the absorbing graph and method 'analytic' only, not with the "
                f"{graph.kind} graph and {self.method!r}"
            )
        changed = self.temperature != 1 or self.top_p != 1 or self.legacy_fp32_gumbel
        if dense and changed:
            raise ValueError(
                "a DenseGraph takes no temperature, top_p or legacy_fp32_gumbel; leave them at "
                "their defaults"
            )
        requested = registry.requested()
        if (dense or self.legacy_fp32_gumbel) and requested not in (None, "reference"):
            what = "a DenseGraph" if dense else "legacy_fp32_gumbel"
            raise ValueError(
                f"{what} is plain torch, but backend {requested!r} was asked for; ask for "
                "'reference' or for none"
            )

    @property
    def times(self) -> Tensor:
        """The time grid, (steps + 1,) float64."""
        assert self.steps is not None, "there is no grid with steps=None"
        return timesteps(self.steps, self.eps)


def timesteps(steps: int, eps: float = 1e-5, device: torch.device | str | None = None) -> Tensor:
    """The time grid of a sampler: (steps + 1,) float64, evenly spaced from 1 down to ``eps``.

    Raises:
        TypeError: ``steps`` is not an int, or ``eps`` not a number.
        ValueError: ``steps`` below 1, ``eps`` outside (0, 1).
    """
    steps = arguments.check_count("steps", steps, hint="; 64 to 1024 are usual")
    arguments.check_numbers(eps=eps)
    if not 0 < eps < 1:
        raise ValueError(f"eps must lie in (0, 1), got {eps}; the usual value is 1e-5")
    return torch.linspace(1, eps, steps + 1, dtype=torch.float64, device=device)
