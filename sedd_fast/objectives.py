"""The training objectives of neighbouring papers, called as :class:`sedd_fast.ScoreEntropyLoss`.

For one sequence, E = expm1(sigma(t)), scores s = exp(l), S their sum over y != x_t, ratios
r_y = p(y | x_0) / p(x_t | x_0), w_y the rates of jumps (1 from the mask, 1/V uniformly):

    MaskedCrossEntropy      sigma'(t) / E * sum over masked positions of [ln S - l_{x_0}]
      over="lambda"         the same, drawn over the mask probability: 1/lambda for sigma'(t) / E
    D3PMLoss                T * KL(q(x_s | x_t, x_0), p(x_s | x_t)), the law of an analytic step
    ConcreteScoreMatching   sigma'(t) / 2 * sum over y != x_t of w_y (s_y - r_y)^2

in nats (the last in none), summed over positions. Each is made of the sums of ``row_sums``, so only
touched rows are read. They take a score network; one of p(x_0 | x_t) goes into a
:class:`sedd_fast.PosteriorModel`. docs/losses.md has the table of papers and names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import entropy_coefficients, reverse_coefficients
from sedd_fast.backends.inputs import Entropy, Reverse
from sedd_fast.graphs import Graph
from sedd_fast.losses import ScoreEntropyLoss, ScoreModel, _check_mask, stratified_times
from sedd_fast.ops import row_sums, sample_transition

_ALL_MASKED = 50.0  #: noise that leaves a token unmasked once in 1e21: for a mask probability of 1


class _Level(NamedTuple):
    """The noise of every sequence, (B,) float64.

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


class _Noised(NamedTuple):
    """What a position's term is made of.

    Attributes:
        log_score: (B, L, dim).
        x_t, x_0: (B, L).
        weight: (B, L) float64; 0 outside the loss mask.
        level: of every sequence.
    """

    log_score: Tensor
    x_t: Tensor
    x_0: Tensor
    weight: Tensor
    level: _Level


@dataclass(frozen=True)
class _Objective(ScoreEntropyLoss):
    """Noise, network and reduction; what a position costs is the subclass's."""

    def _level(self, t: Tensor) -> _Level:
        sigma, rate = self.noise(t)
        return _Level(sigma, sigma, rate, sigma)

    def _terms(self, noised: _Noised) -> Tensor:
        """(B, L) float64, weighted; 0 where the weight is."""
        raise NotImplementedError

    def __call__(
        self,
        model: ScoreModel,
        x_0: Tensor,
        loss_mask: Tensor | None = None,
        t: Tensor | None = None,
        x_t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise x_0, run the model, add up its terms: arguments, result and errors as in
        :meth:`sedd_fast.ScoreEntropyLoss.__call__`."""
        if loss_mask is not None:
            _check_mask(loss_mask, x_0)
        if t is None:
            t = stratified_times(x_0.shape[0], self.sampling_eps, x_0.device, generator)
        level = self._level(t.double())
        if x_t is None:
            x_t = sample_transition(x_0, level.sigma, self.graph, generator=generator)
            if loss_mask is not None:
                x_t = torch.where(loss_mask, x_t, x_0)
        weight = level.weight[:, None].expand(x_0.shape)  # (B, L)
        if loss_mask is not None:
            weight = weight * loss_mask
        log_score = model(x_t, level.told.to(t.dtype))  # (B, L, dim)
        loss = self._terms(_Noised(log_score, x_t, x_0, weight, level)).sum(-1)
        loss = loss if log_score.dtype == torch.float64 else loss.float()
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


@dataclass(frozen=True)
class MaskedCrossEntropy(_Objective):
    """Cross entropy of the posterior s / sum(s) at masked positions: MDLM, RADD, LLaDA.

        sigma'(t) / E * sum over masked positions of [ln sum(s) - l_{x_0}]

    It is score entropy less Z - 1 - ln Z, Z = E sum(s): the same for a normalised network, and
    does not change when a row of log scores is shifted. For the log-linear schedule the weight is
    1/t. LLaDA divides by the length besides. RADD calls it t-DCE.

    Args:
        graph: ``Absorbing(V)``.
        noise, reduction, sampling_eps: as in :class:`sedd_fast.ScoreEntropyLoss`.
        over: "t", or "lambda" (RADD's lambda-DCE): the times drawn, and ``t`` where given, are mask
            probabilities lambda in (0, 1], the weight is 1/lambda, and the schedule only says
            which noise the network is told of, within its trained range.

    Raises:
        ValueError: another graph, another ``over``; as ScoreEntropyLoss.

    Example:
        >>> objective = MaskedCrossEntropy(graph, LogLinearNoise(), "mean")
        >>> objective(PosteriorModel(network, graph, takes_sigma=False), x_0).backward()

    Source: Sahoo et al. 2024 (arXiv 2406.07524), equation 10; Ou et al. 2024 (arXiv 2406.03736),
    section 3.3; Nie et al. 2025 (arXiv 2502.09992), equation 3.
    """

    over: str = "t"

    def __post_init__(self) -> None:
        super().__post_init__()
        _need_mask(self.graph, "MaskedCrossEntropy")
        if self.over not in ("t", "lambda"):
            raise ValueError(f"over must be 't' or 'lambda', got {self.over!r}")

    def _level(self, t: Tensor) -> _Level:
        if self.over == "t":
            sigma, rate = self.noise(t)
            return _Level(sigma, sigma, rate / torch.expm1(sigma), sigma)
        sigma = -torch.log1p(-t)
        ends = self.noise.sigma(torch.tensor([self.sampling_eps, 1.0], dtype=torch.float64))
        low, high = ends.tolist()
        return _Level(sigma.clamp(max=_ALL_MASKED), sigma.clamp(low, high), 1 / t, sigma)

    def _terms(self, noised: _Noised) -> Tensor:
        return _cross_entropy(noised, noised.weight, self.graph)


@dataclass(frozen=True)
class D3PMLoss(_Objective):
    """The variational bound of D3PM: a chain of T steps at the times k / T.

        sum over k = 2 .. T of KL(q(x_s | x_t, x_0), p(x_s | x_t)) - ln p(x_0 | x_{1/T}),
        t = k / T, s = (k - 1) / T

    of which one term, drawn uniformly, is computed, times T. p(x_s | x_t) is the sum over x_0 of
    q(x_s | x_t, x_0) p(x_0 | x_t), which is the law of :func:`sedd_fast.reverse_step`, "analytic".
    (The paper weighs its predicted x_0 by q(x_t | x_0) as well, as if it had not seen x_t at this
    position; for the absorbing graph that is no difference.) The divergence at t = 1 has no
    gradient and is left out. As T grows the absorbing bound tends to MaskedCrossEntropy's, the
    uniform one to ScoreEntropyLoss's.

    Absorbing: KL = expm1(d) / E * [ln sum(s) - l_{x_0}], d the noise between s and t.

    Args:
        graph, noise, reduction: as in :class:`sedd_fast.ScoreEntropyLoss`.
        sampling_eps: times are drawn from (sampling_eps, 1] and rounded up to k / T; the default
            reaches every k.
        steps: T.

    A uniform graph's scores must belong to a posterior (:class:`sedd_fast.PosteriorModel`): others
    can give a step negative weights, and the loss is NaN.

    Raises:
        ValueError: ``steps`` below 1; as ScoreEntropyLoss.

    Example:
        >>> D3PMLoss(Uniform(27), noise, "mean", steps=1000)(PosteriorModel(net, graph), x_0)

    Source: Austin et al. 2021 (arXiv 2107.03006), equations 1 and 4, appendix A.
    """

    sampling_eps: float = 1e-9
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {self.steps!r}")

    def _level(self, t: Tensor) -> _Level:
        # A time that float32 has rounded up stays at its step.
        rounding = torch.finfo(torch.float32).eps if self.steps < 2**20 else 0.0
        k = torch.ceil(t * self.steps * (1 - rounding)).clamp(1, self.steps)
        sigma = self.noise.sigma(k / self.steps)
        before = torch.where(k == 1, 0.0, self.noise.sigma((k - 1) / self.steps))
        return _Level(sigma, sigma, torch.full_like(sigma, self.steps), sigma - before)

    def _terms(self, noised: _Noised) -> Tensor:
        if self.graph.mask_index is None:
            return noised.weight * _uniform_divergence(noised, self.graph)
        level = noised.level
        unmasked = torch.expm1(level.removed) / torch.expm1(level.sigma)  # (B,)
        return _cross_entropy(noised, noised.weight * unmasked[:, None], self.graph)


@dataclass(frozen=True)
class ConcreteScoreMatching(_Objective):
    """The squared error of the ratios, which score entropy replaces.

        sigma'(t) / 2 * sum over y != x_t of w_y (s_y - r_y)^2

    with the weights w_y of score entropy. Its minimum, over the network, is at the same ratios;
    its value bounds nothing, and at small noise the variance of its target is of order 1/E^2.

    Args:
        graph, noise, reduction, sampling_eps: as in :class:`sedd_fast.ScoreEntropyLoss`.

    Source: Meng et al. 2022 (arXiv 2211.00802); Lou, Meng, Ermon 2024 (arXiv 2310.16834),
    equation 3, with p(y | x_0) / p(x_t | x_0) for the ratios of p_t, as in equation 9.
    """

    def _terms(self, noised: _Noised) -> Tensor:
        log_score, x_t, x_0, weight, level = noised
        entropy = Entropy(level.sigma, x_t, x_0, None, self.graph.kind, self.graph.vocab_size)
        # c + b = r at x_0 and b = r elsewhere, up to the factor w: the ratios of score entropy.
        a, b, c, _ = entropy_coefficients(entropy)
        touched = (a > 0) & (weight != 0)
        jump = torch.where(touched, a, 1.0)
        ratio, ratio_x_0 = b / jump, (b + c) / jump
        total, log_x_0 = row_sums(
            log_score, x_t, x_0, self.graph, "square", touched.double(), -ratio
        )
        # The sum has (s - ratio)^2 at x_0 as well.
        at_x_0 = (ratio_x_0 - ratio) * (ratio_x_0 + ratio - 2 * log_x_0.exp())
        at_x_0 = torch.where(x_0 == x_t, 0.0, at_x_0)
        return torch.where(touched, weight * jump / 2 * (total + at_x_0), 0.0)


def _need_mask(graph: Graph, what: str) -> None:
    if graph.mask_index is None:
        raise ValueError(
            f"{what} is for the absorbing graph, got {graph}; for the uniform one take "
            "ScoreEntropyLoss or D3PMLoss"
        )


def _cross_entropy(noised: _Noised, weight: Tensor, graph: Graph) -> Tensor:
    """weight * [ln sum(s) - l_{x_0}] at masked positions, (B, L) float64."""
    log_score, x_t, x_0 = noised[:3]
    read = (x_t == graph.mask_index) & (weight != 0)
    total, log_x_0 = row_sums(log_score, x_t, x_0, graph, "affine", read.double())
    return torch.where(read, weight * (torch.where(read, total, 1.0).log() - log_x_0), 0.0)


def _uniform_divergence(noised: _Noised, graph: Graph) -> Tensor:
    """KL(q(x_s | x_t, x_0), p(x_s | x_t)) of every position, (B, L) float64."""
    log_score, x_t, x_0, weight, level = noised
    q = _uniform_step(level, x_t == x_0, graph.vocab_size)
    read = weight != 0
    total, log_x_0 = row_sums(log_score, x_t, x_0, graph, "affine", read.double())
    # The step's law: alpha s_y + beta, and gamma for x_t; it sums to 1 whatever the scores.
    step = Reverse(x_t, level.sigma, level.removed, None, graph.kind, graph.vocab_size, "analytic")
    alpha, beta, gamma = reverse_coefficients(step, total, torch.ones_like(total))
    every = read & (q.other > 0)
    logs, _ = row_sums(log_score, x_t, x_0, graph, "log", torch.where(every, alpha, 0.0), beta)
    at_x_0 = _weighted_log(q.at_x_0 - q.other, alpha * log_x_0.exp() + beta)
    cross = q.other * logs + at_x_0 + _weighted_log(q.at_x_t, gamma)
    return torch.where(read, q.entropy - cross, 0.0)


class _Step(NamedTuple):
    """q(x_s | x_t, x_0) by the state of x_s, (B, L) float64.

    Attributes:
        other: of each state that is neither; at_x_0: of x_0 (``other`` where x_0 = x_t);
        at_x_t: of x_t.
        entropy: sum of q ln q.
    """

    other: Tensor
    at_x_0: Tensor
    at_x_t: Tensor
    entropy: Tensor


def _uniform_step(level: _Level, same: Tensor, size: int) -> _Step:
    """By Bayes' rule from p(x_t | x_s), p(x_s | x_0) and p(x_t | x_0)."""
    own_d, off_d = _transition(level.removed, size)
    own_s, off_s = _transition(level.sigma - level.removed, size)
    own_t, off_t = _transition(level.sigma, size)
    whole = torch.where(same, own_t, off_t)  # p(x_t | x_0)
    other = off_d * off_s / whole
    at_x_0 = torch.where(same, other, off_d * own_s / whole)
    at_x_t = own_d * torch.where(same, own_s, off_s) / whole
    rest = torch.where(same, size - 1.0, size - 2.0)
    entropy = rest * torch.xlogy(other, other) + torch.xlogy(at_x_t, at_x_t)
    return _Step(
        other, at_x_0, at_x_t, entropy + torch.where(same, 0.0, torch.xlogy(at_x_0, at_x_0))
    )


def _transition(sigma: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(B, 1): the probabilities of staying and of one other token, at noise sigma (B,)."""
    off = -torch.expm1(-sigma)[:, None] / size
    return torch.exp(-sigma)[:, None] + off, off


def _weighted_log(weight: Tensor, p: Tensor) -> Tensor:
    """weight * ln p, 0 where the weight is, whatever p."""
    return torch.where(weight != 0, weight * torch.where(weight != 0, p, 1.0).log(), 0.0)
