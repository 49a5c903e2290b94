"""The training objective, score entropy at a random time, and what every objective shares.

For one sequence, at a time t in (sampling_eps, 1],

    loss = sigma'(t) * sum over positions of score_entropy(model(x_t, sigma(t)), ...)

in nats; its mean over t bounds -log p(x_0) from above (up to what is dropped below sampling_eps).

An :class:`Objective` is a frozen dataclass that is called on a network and text: it draws times,
noises the text, weighs positions, asks the network, adds up. A subclass says what a position costs
(``_terms``); those of other papers are in :mod:`sedd_fast.objectives`.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equation 10 and algorithm 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sedd_fast.graphs import Graph
from sedd_fast.noise import Noise
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import sample_transition, score_entropy

#: A network: (tokens (B, L), sigma (B,)) -> log scores (B, L, dim).
ScoreModel = Callable[..., Tensor]


def stratified_times(
    batch: int,
    low: float,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(batch,) float32 times in (low, 1], one in each of ``batch`` equal slices, shuffled.

    Each time alone is uniform on (low, 1]; together they cover it evenly, which lowers the
    variance of the batch's mean loss.
    """
    draw_on = generator.device if generator is not None else device
    offsets = torch.rand(batch, generator=generator, device=draw_on)
    order = torch.randperm(batch, generator=generator, device=draw_on)
    return (1 - (1 - low) * (order + offsets) / max(batch, 1)).to(device)


class Level(NamedTuple):
    """The noise of every sequence, (B,).

    Attributes:
        sigma: total noise of x_t.
        told: what the network is told of it.
        weight: of a position's term.
        removed: noise between x_t and x_s, of a discrete step; else sigma.
    """

    sigma: Tensor
    told: Tensor
    weight: Tensor
    removed: Tensor


class Noised(NamedTuple):
    """A batch that a network is asked about.

    Attributes:
        x_t, x_0: (B, L).
        weight: (B, L), of a position's term; 0 outside the loss mask.
        level: of every sequence.
    """

    x_t: Tensor
    x_0: Tensor
    weight: Tensor
    level: Level


@dataclass(frozen=True)
class Objective:
    """What every objective shares: ``loss = objective(model, x_0)``.

    Settings and errors are those of :class:`ScoreEntropyLoss`. A subclass gives ``_terms`` or, to
    ask the network in another way, ``_loss``; and where its times mean something else ``_level``.
    """

    #: Whether the value is in nats, so that bits are made of it.
    in_nats: ClassVar[bool] = True

    graph: Graph
    noise: Noise
    reduction: str = "none"
    sampling_eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {self.reduction!r}")
        if not 0 < self.sampling_eps < 1:
            raise ValueError(f"sampling_eps must lie in (0, 1), got {self.sampling_eps}")

    def __call__(
        self,
        model: ScoreModel,
        x_0: Tensor,
        loss_mask: Tensor | None = None,
        t: Tensor | None = None,
        x_t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise x_0, run the model, add up what its positions cost.

        Args:
            model: ``(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``.
            x_0: (B, L) int64, clean tokens.
            loss_mask: (B, L) bool; False positions (padding, a prompt in fine-tuning) are never
                noised and carry no loss.
            t: (B,) times in (0, 1] instead of a stratified draw.
            x_t: (B, L) noised tokens instead of a draw.
            generator: source of t and of the noise.

        Returns:
            nats (where ``in_nats``), summed over positions: (B,), or () for "mean" and "sum".

        Raises:
            TypeError, ValueError: a wrong dtype, shape, device or value.
        """
        if loss_mask is not None:
            _check_mask(loss_mask, x_0)
        if t is None:
            t = stratified_times(x_0.shape[0], self.sampling_eps, x_0.device, generator)
        level = self._level(t)
        if x_t is None:
            x_t = self._transition(x_0, level.sigma, generator)
            if loss_mask is not None:
                x_t = torch.where(loss_mask, x_t, x_0)
        weight = level.weight[:, None].expand(x_0.shape)  # (B, L)
        if loss_mask is not None:
            weight = weight * loss_mask
        level = level._replace(told=level.told.to(t.dtype))
        return self._loss(model, Noised(x_t, x_0, weight, level))

    def _level(self, t: Tensor) -> Level:
        sigma, rate = self.noise(t)
        return Level(sigma, sigma, rate, sigma)

    def _transition(self, x_0: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        return sample_transition(x_0, sigma, self.graph, generator=generator)

    def _loss(self, model: ScoreModel, noised: Noised) -> Tensor:
        """What ``__call__`` returns, from log scores."""
        log_score = model(noised.x_t, noised.level.told)  # (B, L, dim)
        loss = self._terms(log_score, noised).sum(-1)
        loss = loss.to(torch.promote_types(log_score.dtype, torch.float32))
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def _terms(self, log_score: Tensor, noised: Noised) -> Tensor:
        """What every position costs, weighted, (B, L); 0 where its weight is."""
        raise NotImplementedError


@dataclass(frozen=True)
class ScoreEntropyLoss(Objective):
    """The objective as a callable: ``loss = objective(model, x_0)``.

    A :class:`sedd_fast.SEDD`, wrapped or not, never forms log scores: its fused head gives the
    loss (with "mean" and "sum" at three matrix products, with "none" at four).

    Args:
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        noise: a schedule.
        reduction: over sequences: "none" gives (B,), "mean" and "sum" a scalar.
        sampling_eps: times are drawn from (sampling_eps, 1]; the original's 1e-3.

    Raises:
        ValueError: another reduction, sampling_eps outside (0, 1).

    Example:
        >>> objective = ScoreEntropyLoss(Absorbing(50257), LogLinearNoise(), reduction="mean")
        >>> objective(model, x_0).backward()
    """

    def _loss(self, model: ScoreModel, noised: Noised) -> Tensor:
        x_t, x_0, weight, level = noised
        if self.reduction == "none":
            return entropy_of(model, x_t, level.sigma, x_0, self.graph, weight).sum(-1)
        # A scalar's gradients are formed on the way forward: its factor has to be known there.
        if self.reduction == "mean":
            weight = weight / max(len(x_0), 1)
        return entropy_of(model, x_t, level.sigma, x_0, self.graph, weight, "sum")


def entropy_of(
    model: ScoreModel,
    x_t: Tensor,
    sigma: Tensor,
    x_0: Tensor,
    graph: Graph,
    row_weight: Tensor,
    reduction: str = "none",
) -> Tensor:
    """Score entropy of a network at x_t, through its fused head where it has one.

    Args:
        model: ``(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``, or a network with
            :func:`fuses_head`, which never forms these.
        x_t, x_0: (B, L) int64.
        sigma: (B,), total noise of x_t, as the network is told it.
        row_weight: (B, L), factor of every position's entropy.
        reduction: "none", or "sum".

    Returns:
        nats: (B, L), or () for "sum".
    """
    if fuses_head(model, graph):
        return model(x_t, sigma, x_0, row_weight, reduction)
    log_score = model(x_t, sigma)  # (B, L, dim)
    return score_entropy(
        log_score, sigma, x_t, x_0, graph, row_weight=row_weight, reduction=reduction
    )


def fuses_head(model: object, graph: Graph) -> bool:
    """Whether a network, under whatever wrappers, forms losses and steps of that graph itself.

    Such a network is called as `SEDD.forward` documents; the wrapper is called, not what it wraps.
    """
    inner: object | None = model
    while inner is not None:
        if getattr(inner, "fuses_head", False) is True:
            return getattr(inner, "graph", None) == graph
        inner = _wrapped(inner)
    return False


def _wrapped(module: object) -> object | None:
    """What DDP (`module`) or torch.compile (`_orig_mod`) wraps.

    A module that names its arguments is no such wrapper: it makes log scores of its own.
    """
    if not isinstance(module, nn.Module):
        return None
    taken = inspect.signature(type(module).forward).parameters.values()
    if all(parameter.kind != parameter.VAR_POSITIONAL for parameter in taken):
        return None
    parts = module._modules  # a compiled module's truth is its length, which it may not have
    return parts["module"] if "module" in parts else parts.get("_orig_mod")


def _check_mask(loss_mask: Tensor, x_0: Tensor) -> None:
    if arguments.check_tensor("loss_mask", loss_mask).dtype != torch.bool:
        raise TypeError(
            f"loss_mask must be bool (True = trained on), got {loss_mask.dtype}; "
            "convert it with .bool()"
        )
    if loss_mask.shape != x_0.shape:
        raise ValueError(
            f"loss_mask must have shape {tuple(x_0.shape)}, got {tuple(loss_mask.shape)}"
        )
