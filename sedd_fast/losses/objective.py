"""What every training objective shares: random times, noise, weights of positions, reductions.

For one sequence, at a time t drawn from (sampling_eps, 1],

    loss = sum over positions of weight(t) * term(log scores, x_t, x_0)

An :class:`Objective` is a frozen dataclass, called on a network and a batch. It draws the times and
the noise, evaluates the network and reduces. A subclass defines the term of a position
(``_terms``).

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equation 10 and algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.models.attention import (
    check_attention_mask,
    masked,
    same_document,
    without_padding,
)
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import (
    ScoreEntropyRequest,
    ScoreModel,
    answer,
    warn_of_evaluation_mode,
)
from sedd_fast.names import REDUCTIONS, Reduction
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops import sample_transition
from sedd_fast.ops._uniforms import torch_uniform
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise, check_times


def stratified_times(
    batch: int, low: float, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """(batch,) float32 times in (low, 1], one in each of ``batch`` equal slices, shuffled.

    Each time alone is uniform on (low, 1]; together they cover it evenly, which lowers the
    variance of the batch's mean loss.
    """
    offsets = torch_uniform((batch,), torch.device(device), generator, torch.float32)
    # generator=None cannot be traced by torch.compile with a batch size that varies.
    if generator is None:
        order = torch.randperm(batch, device=device)
    else:
        order = torch.randperm(batch, generator=generator, device=generator.device).to(device)
    return 1 - (1 - low) * (order + offsets) / max(batch, 1)


class Level(NamedTuple):
    """The noise of every sequence, (B,).

    Attributes:
        sigma: total noise of x_t.
        model_sigma: the noise level passed to the network.
        weight: factor of the term of a position.
        removed: noise between x_t and x_s of a discrete step; sigma where time is continuous.
    """

    sigma: Tensor
    model_sigma: Tensor
    weight: Tensor
    removed: Tensor


class NoisedBatch(NamedTuple):
    """A noised batch.

    Attributes:
        x_t, x_0: (B, L).
        weight: (B, L), factor of the term of a position; 0 outside the loss mask.
        level: the noise level of every sequence.
        divisor: what the "mean" reduction divides the sum over sequences by.
        attention_mask: (B, L), for the network.
    """

    x_t: Tensor
    x_0: Tensor
    weight: Tensor
    level: Level
    divisor: int | Tensor
    attention_mask: Tensor | None = None

    def answered_by(self, model: ScoreModel) -> Tensor:
        """The log scores of a network, (B, L, dim)."""
        network: Callable[..., Tensor] = model
        return network(self.x_t, self.level.model_sigma, **masked(self.attention_mask))


@dataclass(frozen=True)
class Objective:
    """What every objective shares: ``loss = objective(model, x_0)``.

    Settings and errors are those of :class:`sedd_fast.ScoreEntropyLoss`. A subclass defines
    ``_terms``, or ``_loss`` where it does not need log scores, and ``_level`` where its times are
    not t.

    Args:
        per_token: divide the loss of every document by the number of its positions with loss, as
            LLaDA's fine-tuning does (Nie et al. 2025, arXiv 2502.09992, algorithm 2).
    """

    #: Whether the value is in nats, so that it can be shown in bits.
    in_nats: ClassVar[bool] = True

    graph: Graph
    noise: Noise
    reduction: Reduction = "none"
    sampling_eps: float = 1e-3
    per_token: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        arguments.check_choice("reduction", self.reduction, REDUCTIONS)
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
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Noise x_0, run the model, sum the terms of the positions.

        Args:
            model: ``(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``.
            x_0: (B, L) int64, clean tokens.
            loss_mask: (B, L) bool; False positions (padding, a prompt in fine-tuning) are never
                noised and carry no loss.
            t: (B,) times in (0, 1] instead of a stratified draw; 16-bit ones become float32.
            x_t: (B, L) noised tokens instead of a draw.
            generator: random generator of the times and the noise.
            attention_mask: (B, L), 0 at padding, which is not read, is never noised and carries no
                loss; positions of equal number attend to each other alone, as in a padded batch or
                in packed documents (:mod:`sedd_fast.models.attention`). All documents of a
                sequence have its time.

        Returns:
            nats (where ``in_nats``), summed over positions: (B,), or () for "mean" and "sum". With
            ``per_token`` the sum of every document is divided by the number of its positions with
            loss, and "mean" is that over documents.

        Raises:
            TypeError, ValueError: a wrong dtype, shape, device or value.
        """
        warn_of_evaluation_mode(model)
        if loss_mask is not None:
            arguments.check_mask("loss_mask", loss_mask, x_0)
        if attention_mask is not None:
            check_attention_mask(attention_mask, x_0)
            x_0 = without_padding(x_0, attention_mask, self.graph)
            real = attention_mask != 0
            loss_mask = real if loss_mask is None else loss_mask & real
        if t is None:
            t = stratified_times(x_0.shape[0], self.sampling_eps, x_0.device, generator)
        t = check_times(t)
        level = self._level(t)
        if x_t is None:
            x_t = self._transition(x_0, level.sigma, generator)
            if loss_mask is not None:
                x_t = torch.where(loss_mask, x_t, x_0)
        elif attention_mask is not None:
            x_t = without_padding(x_t, attention_mask, self.graph)
        weight = level.weight[:, None].expand(x_0.shape)  # (B, L)
        if loss_mask is not None:
            weight = weight * loss_mask
        divisor: int | Tensor = len(x_0)
        if self.per_token:
            share = _share(x_0, loss_mask, attention_mask)
            weight, divisor = weight * share, share.sum().clamp(min=1)
        level = level._replace(model_sigma=level.model_sigma.to(fp32_or_fp64(t.dtype)))
        return self._loss(model, NoisedBatch(x_t, x_0, weight, level, divisor, attention_mask))

    def _level(self, t: Tensor) -> Level:
        sigma, rate = self.noise(t)
        return Level(sigma, sigma, rate, sigma)

    def _transition(self, x_0: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        return sample_transition(x_0, sigma, self.graph, generator=generator)

    def _loss(self, model: ScoreModel, noised: NoisedBatch) -> Tensor:
        """The result of ``__call__``, from log scores."""
        log_score = noised.answered_by(model)
        loss = self._terms(log_score, noised).sum(-1)
        if self.reduction == "mean" and self.per_token:
            loss = loss.sum() / noised.divisor
        else:
            loss = arguments.reduce(loss, self.reduction)
        return loss.to(fp32_or_fp64(log_score.dtype))

    def _answered(
        self,
        request: type[ScoreEntropyRequest] | type[CrossEntropyRequest],
        model: ScoreModel,
        noised: NoisedBatch,
        sigma: Tensor,
    ) -> Tensor:
        """The result of ``__call__`` by one request; the network is passed sigma (B,)."""
        x_t, x_0, weight, _, divisor, attention_mask = noised
        if self.reduction == "mean":  # the factor of a scalar has to be known in the forward
            weight = weight / (max(divisor, 1) if isinstance(divisor, int) else divisor)
        reduction: Reduction = "none" if self.reduction == "none" else "sum"
        asked = request(x_0, weight, reduction)
        loss = answer(model, self.graph, x_t, sigma, asked, attention_mask)
        if self.reduction == "mean" and len(x_0) == 0:
            return loss + torch.nan  # the mean of no sequence, of zero gradient, as elsewhere
        return loss.sum(-1) if reduction == "none" else loss

    def _terms(self, log_score: Tensor, noised: NoisedBatch) -> Tensor:
        """The weighted term of every position, (B, L); 0 where its weight is 0."""
        raise NotImplementedError


def _share(x_0: Tensor, loss_mask: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """(B, L) float64: at a position with loss 1 / the number of these in its document, else 0."""
    if loss_mask is None:
        loss_mask = torch.ones_like(x_0, dtype=torch.bool)
    number = loss_mask.double()
    if attention_mask is None:
        return number / number.sum(-1, keepdim=True).clamp(min=1)
    in_document = (same_document(attention_mask) & loss_mask[:, None]).sum(-1)
    return number / in_document.clamp(min=1)
