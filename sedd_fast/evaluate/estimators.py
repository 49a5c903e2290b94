"""The estimators behind `likelihood_bound`: the terms of each integral and the terms at its ends.

The formulas are in :mod:`sedd_fast.evaluate.bound`.
"""

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sedd_fast.evaluate.balanced import balanced_draws, variance_of_groups
from sedd_fast.evaluate.draws import Batches, variance_of_mean
from sedd_fast.evaluate.levels import Levels, noised
from sedd_fast.evaluate.result import LikelihoodBound
from sedd_fast.evaluate.sequences import Sequences
from sedd_fast.evaluate.standard_error import covering_error, total
from sedd_fast.models.attention import masked
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import ScoreEntropyRequest, ScoreModel, answer, evaluating
from sedd_fast.names import MODES, TIMES, Mode, Times
from sedd_fast.ops import reverse_probs
from sedd_fast.ops._arguments import check_choice, whole
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise, trained_range


@dataclass(frozen=True)
class Estimator:
    """The settings of one evaluation, checked, and the evaluation itself.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    graph: Graph
    noise: Noise
    mode: Mode
    samples: int
    eps: float
    batch_size: int
    times: Times
    generator: torch.Generator | None
    progress: bool

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("times", self.times, TIMES)
        if self.mode == "normalised" and self.graph.kind != "absorbing":
            raise ValueError(
                f"mode 'normalised' is for the absorbing graph, got {self.graph}; use 'exact'"
            )
        for name, least in (("samples", 2), ("batch_size", 1)):
            value = getattr(self, name)
            if (number := whole(value)) is None or number < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
            object.__setattr__(self, name, number)
        if self.times == "antithetic" and self.samples % 4:
            raise ValueError(
                "samples must be a multiple of 4 with times='antithetic' (pairs, and two of them "
                f"for a standard error), got {self.samples}; use {self.samples // 4 * 4 + 4}"
            )
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie in (0, 1), got {self.eps}; the usual value is 1e-3")

    @property
    def over_masks(self) -> bool:
        """Whether the integral is over the number of masks, not over the noise level."""
        return self.graph.kind == "absorbing" and self.mode != "paper"

    @torch.no_grad()
    def __call__(
        self, model: ScoreModel, sequences: Sequences, device: torch.device
    ) -> LikelihoodBound:
        counts, label = sequences.counts.cpu(), f"bound ({self.mode})"
        balanced = self.times == "balanced" and self.over_masks
        times: Times = "stratified" if self.times == "balanced" else self.times
        batches = Batches(sequences, device, self.generator, self.batch_size, self.progress, times)
        term = self._over_masks if self.over_masks else self._over_levels
        with evaluating(model):
            if balanced:
                integral = balanced_draws(
                    partial(self._losses, model), sequences, self.samples, device, self.generator,
                    self.batch_size, label, self.progress,
                )  # fmt: skip
                variance, degrees = variance_of_groups(integral)
            else:
                integral = batches.draw(partial(term, model), self.samples, label)
                variance, degrees = variance_of_mean(integral)
            nats = integral.mean(1)
            if self.mode == "exact" and not self.over_masks:  # the terms at t0 and at t = 1
                # Few tokens have changed at t0, so this term varies less: an eighth of the samples.
                few = max(4, self.samples // 32 * 4)
                last = batches.draw(partial(self._reconstruction, model), few, "reconstruction")
                divergence = limit_divergence(self._levels.high, self.graph.vocab_size)
                nats = nats + last.mean(1) + counts * divergence
                both = zip((variance, degrees), variance_of_mean(last), strict=True)
                variance, degrees = total(*(torch.stack(pair, 1) for pair in both))
        stderr = covering_error(variance, degrees)
        strict = self.mode != "paper"
        length = sequences.x_0.shape[1]
        tokens = length if bool((counts == length).all()) else counts
        drawn: Times = "balanced" if balanced else times
        return LikelihoodBound(
            nats, stderr, tokens, self.mode, self.samples, strict, drawn, degrees
        )

    # Requests leave positions unsummed: they are added up in float64.

    def _over_masks(
        self, model: ScoreModel, given: Sequences, place: Tensor, choice: Tensor, u: Tensor
    ) -> Tensor:
        """L * mean of the bracket over n masked positions, n from ``place``; (R,)."""
        length = given.counts
        order = u[..., 0].masked_fill(~given.evaluated, 2.0)  # (R, L); above 1 is never masked
        count = (place * length).long().minimum(length - 1) + 1  # n, (R,)
        m = order.sort(-1).values.gather(-1, count[:, None] - 1)  # (R, 1)
        losses = self._losses(model, given, order <= m, m.squeeze(-1), length / count.double())
        return losses.sum(-1)

    def _losses(
        self, model: ScoreModel, given: Sequences, masked: Tensor, m: Tensor, weight: Tensor
    ) -> Tensor:
        """The bracket of every masked position at mask probability m, times weight; (R, L)."""
        sigma, mask = self._trained(-torch.log1p(-m)), self.graph.mask_index
        assert mask is not None  # over_masks
        x_t = torch.where(masked, mask, given.x_0)
        if self.mode == "normalised":
            weight = weight[:, None].expand(x_t.shape)
            request = CrossEntropyRequest(given.x_0, weight)
            return answer(model, self.graph, x_t, sigma, request, given.attention_mask).double()
        return self._entropies(model, x_t, given, sigma, weight * torch.expm1(sigma.double()))

    def _trained(self, sigma: Tensor) -> Tensor:
        """sigma clamped to the noise levels of training, in float32: passed to the network."""
        return sigma.clamp(min=self._levels.low, max=self._levels.high).float()

    @property
    def _levels(self) -> Levels:
        """The noise levels of training."""
        return Levels(*trained_range(self.noise, self.eps))

    def _over_levels(
        self, model: ScoreModel, given: Sequences, place: Tensor, choice: Tensor, u: Tensor
    ) -> Tensor:
        """Mean score entropy at a level sigma from ``place``, times the level's weight; (R,)."""
        sigma = self._levels.at(place)
        entropy = partial(self._entropy, model)
        return self._mean(entropy, given, sigma, choice, u) * self._levels.weight(sigma)

    def _mean(
        self,
        loss: Callable[..., Tensor],
        given: Sequences,
        sigma: Tensor,
        choice: Tensor,
        u: Tensor,
    ) -> Tensor:
        """An estimate of the mean of ``loss(x_t, given, sigma)`` over x_t; (R,)."""
        x_t, left_out = noised(given.x_0, given.evaluated, sigma, self.graph, choice, u)
        mean = (1 - left_out) * loss(x_t, given, sigma)
        if self.graph.mask_index is None and bool((rare := left_out > 0).any()):
            clean = given.where(rare)
            mean[rare] += left_out[rare] * loss(clean.x_0, clean, sigma[rare])
        return mean

    def _entropy(
        self,
        model: ScoreModel,
        x_t: Tensor,
        given: Sequences,
        sigma: Tensor,
    ) -> Tensor:
        """Score entropy of each sequence; (R,) float64."""
        return self._entropies(model, x_t, given, sigma, torch.ones_like(sigma)).sum(-1)

    def _entropies(
        self,
        model: ScoreModel,
        x_t: Tensor,
        given: Sequences,
        sigma: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Score entropy of each evaluated position, times its weight (R,); (R, L) float64."""
        request = ScoreEntropyRequest(given.x_0, weight[:, None] * given.evaluated)
        mask = given.attention_mask
        return answer(model, self.graph, x_t, sigma.float(), request, mask).double()

    def _reconstruction(
        self, model: ScoreModel, given: Sequences, place: Tensor, choice: Tensor, u: Tensor
    ) -> Tensor:
        """Mean of -log p(x_0 | x_t0) under the denoising step at t0 = eps; (R,)."""
        sigma = torch.full_like(place, self._levels.low)
        return self._mean(partial(self._denoised, model), given, sigma, place, u)

    def _denoised(self, model: ScoreModel, x_t: Tensor, given: Sequences, sigma: Tensor) -> Tensor:
        """-log p(x_0 | x_t) under the denoising step at noise sigma (R,); (R,) float64."""
        x_0, sigma, network = given.x_0, sigma.float(), typing.cast(Callable[..., Tensor], model)
        log_score = network(x_t, sigma, **masked(given.attention_mask))
        nats = []
        for i in range(len(x_0)):  # one sequence at a time: probs is (1, L, V)
            one = slice(i, i + 1)
            probs = reverse_probs(log_score[one], x_t[one], sigma[one], None, self.graph, "denoise")
            own = probs.gather(-1, x_0[one, :, None]).squeeze(-1)[given.evaluated[one]]
            nats.append(-own.double().log().sum())
        return torch.stack(nats)


def limit_divergence(sigma: float, vocab_size: int) -> float:
    """KL(p(. | x_0) at total noise sigma, uniform over V) of one position, in nats."""
    kept = math.exp(-sigma)
    moved = -math.expm1(-sigma)
    own = (1 + (vocab_size - 1) * kept) / vocab_size  # p(x_0 | x_0)
    tail = moved * math.log(moved) if moved > 0 else 0.0
    return own * math.log1p((vocab_size - 1) * kept) + (vocab_size - 1) / vocab_size * tail
