"""Every network call with its draw: of all positions (``draw``) or of chosen ones (``draw_at``).

The samplers decide when, where and how far to step; how the next tokens come out of a network is
decided here alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sedd_fast.backends import registry
from sedd_fast.models.interface import ReverseStepRequest, ScoreModel, takes_request
from sedd_fast.ops import TouchedRows, reverse_step
from sedd_fast.ops._arguments import METHODS
from sedd_fast.ops._uniforms import uniforms
from sedd_fast.process.dense_graph import DenseGraph
from sedd_fast.process.dense_graph import reverse_step as dense_step
from sedd_fast.process.graphs import Graph
from sedd_fast.sampling.leap import leap
from sedd_fast.sampling.legacy import gumbel_step
from sedd_fast.sampling.shape import Shape


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn from scores.

    Args:
        graph: ``Absorbing(V)``, ``Uniform(V)`` or a ``DenseGraph``.
        generator: source of all randomness, on the CPU or on the device; torch's own if None.
        shape: temperature and top-p.
        legacy_fp32_gumbel: draw as the original code does (``legacy.py``).
    """

    graph: Graph
    generator: torch.Generator | None = None
    shape: Shape = field(default_factory=Shape)
    legacy_fp32_gumbel: bool = False

    def __post_init__(self) -> None:
        if self.legacy_fp32_gumbel:
            require_plain_torch("legacy_fp32_gumbel")
        if isinstance(self.graph, DenseGraph):
            require_plain_torch("a DenseGraph")
            if self.legacy_fp32_gumbel or not self.shape.is_identity:
                raise ValueError(
                    "a DenseGraph takes no temperature, top_p or legacy_fp32_gumbel; leave them at "
                    "their defaults"
                )


def draw(
    model: ScoreModel, x: Tensor, sigma: Tensor, removed: Tensor, method: str, drawing: Drawing
) -> Tensor:
    """The next tokens of every position: one network call, one draw a position.

    Args:
        model: ``(tokens (B, L), sigma (B,)) -> log_score (B, L, dim)``.
        x: (B, L) tokens now.
        sigma: () or (B,) float64, total noise now.
        removed: () or (B,) float64: for "analytic" the noise removed, for "euler" and
            "tau_leaping" the step size times the noise rate; not read by "denoise".
        method: "tau_leaping" or a method of :func:`sedd_fast.reverse_step`.
        drawing: graph and randomness.

    Returns:
        (B, L) int64. Without a call x itself, where no position can change.
    """
    if all_unmasked(x, drawing.graph):
        return x
    if method in METHODS and _fused(model, drawing):
        u = uniforms(x, None, drawing.generator)
        asked = ReverseStepRequest(method, removed, u, **drawing.shape.options())
        return model(x, _level(x, sigma), asked)
    log_score, graph = _network(model, x, sigma), drawing.graph
    if method == "tau_leaping":
        return leap(log_score, x, removed, graph, drawing.generator, drawing.shape)
    if isinstance(graph, DenseGraph):
        return dense_step(log_score, x, sigma, removed, graph, method, drawing.generator)
    step = gumbel_step if drawing.legacy_fp32_gumbel else reverse_step
    return step(
        log_score, x, sigma, removed, graph, method, drawing.generator, **drawing.shape.options()
    )


def draw_at(
    model: ScoreModel, x: Tensor, sigma: Tensor, row: Tensor, column: Tensor, drawing: Drawing
) -> Tensor:
    """Tokens at chosen masked positions, in proportion to the scores: p(y) = s_y / sum(s).

    One network call; of its scores only those at the positions are read.

    Args:
        model: ``(tokens (R, L), sigma (R,)) -> log_score (R, L, dim)``.
        x: (R, L) the sequences in which a position is to be drawn.
        sigma: (R,) float64, their noise.
        row, column: (K,) int64, the positions, masked ones, in x.
        drawing: graph (absorbing) and randomness.

    Returns:
        (K,) int64, never the mask.
    """
    graph, here = drawing.graph, x[row, column].unsqueeze(1)  # (K, 1)
    shape = drawing.shape.options()
    if _fused(model, drawing):
        u = torch.zeros((*x.shape, 2), dtype=torch.float64, device=x.device)  # unread elsewhere
        u[row, column] = uniforms(here, None, drawing.generator).squeeze(1)
        rows = TouchedRows.at(row * x.shape[1] + column)
        drawn = model(x, _level(x, sigma), ReverseStepRequest("denoise", None, u, rows, **shape))
        return drawn[row, column]
    log_score = _network(model, x, sigma)[row, column].unsqueeze(1)  # (K, 1, dim)
    drawn = reverse_step(
        log_score, here, sigma[row], None, graph, "denoise", drawing.generator, **shape
    )
    return drawn.squeeze(1)


def scores(model: ScoreModel, x: Tensor, sigma: Tensor, drawing: Drawing) -> Tensor:
    """Log scores (B, L, dim) in their shape, of x (B, L) at noise sigma, () or (B,)."""
    return drawing.shape(_network(model, x, sigma), x, drawing.graph)


def _network(model: ScoreModel, x: Tensor, sigma: Tensor) -> Tensor:
    return model(x, _level(x, sigma))


def _level(x: Tensor, sigma: Tensor) -> Tensor:
    """(B,) float32: the noise as a network takes it."""
    return sigma.float().expand(x.shape[0])


def _fused(model: ScoreModel, drawing: Drawing) -> bool:
    """Whether the network draws itself: no log scores, and none at positions that cannot move."""
    return not drawing.legacy_fp32_gumbel and takes_request(
        model, drawing.graph, ReverseStepRequest
    )


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniforms in [0, 1), float64, of the shape and on the device of ``like``."""
    draw_on = like.device if generator is None else generator.device
    u = torch.rand(like.shape, dtype=torch.float64, device=draw_on, generator=generator)
    return u.to(like.device)


def require_plain_torch(what: str) -> None:
    """ValueError if a backend other than "reference" was asked for."""
    if (asked := registry.requested()) not in (None, "reference"):
        raise ValueError(
            f"{what} is plain torch, but backend {asked!r} was asked for; ask for 'reference' or "
            "for none"
        )


def all_unmasked(x: Tensor, graph: Graph) -> bool:
    """No mask is left, so nothing can change. Not asked on a GPU, which would have to wait."""
    mask = graph.mask_index
    return mask is not None and x.device.type == "cpu" and not bool((x == mask).any())
