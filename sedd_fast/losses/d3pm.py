"""The variational bound of D3PM, a chain of finitely many steps, for both graphs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import kept_and_lost, reverse_coefficients
from sedd_fast.backends.inputs import ReverseInputs
from sedd_fast.losses.objective import Level, NoisedBatch, Objective
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import ScoreModel
from sedd_fast.ops import row_sums
from sedd_fast.ops._arguments import check_count, process
from sedd_fast.process.graphs import Graph


@dataclass(frozen=True)
class D3PMLoss(Objective):
    """The variational bound of D3PM: a chain of T steps at the times k / T.

        sum over k = 2 .. T of KL(q(x_s | x_t, x_0), p(x_s | x_t)) - ln p(x_0 | x_{1/T}),
        t = k / T, s = (k - 1) / T

    of which one term, drawn uniformly, is computed, times T. p(x_s | x_t) is the sum over x_0 of
    q(x_s | x_t, x_0) p(x_0 | x_t), from which :func:`sedd_fast.reverse_step` draws with "analytic".
    (The paper also weights its predicted x_0 by q(x_t | x_0), as if the network had not seen x_t at
    this position; for the absorbing graph both are equal.) The divergence at t = 1 has no gradient
    and is left out. As T grows the absorbing bound tends to MaskedCrossEntropy's, the uniform one
    to ScoreEntropyLoss's.

    Absorbing: KL = expm1(d) / E * [ln sum(s) - l_{x_0}], d the noise between s and t.

    Args:
        graph, noise, reduction: as in :class:`sedd_fast.ScoreEntropyLoss`.
        sampling_eps: times are drawn from (sampling_eps, 1] and rounded up to k / T; the default
            reaches every k.
        steps: T.

    A uniform graph's scores must belong to a posterior (:class:`sedd_fast.PosteriorModel`): others
    can give a step negative probabilities, and the loss is NaN. So can rounding: in float32, at the
    last step, where p(x_0 | x_t) is below about 1e-15.

    Raises:
        TypeError: ``steps`` is not an int.
        ValueError: ``steps`` below 1; as ScoreEntropyLoss.

    Example:
        >>> D3PMLoss(Uniform(27), noise, "mean", steps=1000)(PosteriorModel(net, graph), x_0)

    Source: Austin et al. 2021 (arXiv 2107.03006), equations 1 and 4, appendix A.
    """

    sampling_eps: float = 1e-9
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "steps", check_count("steps", self.steps))

    def _level(self, t: Tensor) -> Level:
        t = t.double()
        # A time that float32 has rounded up stays at its step.
        rounding = torch.finfo(torch.float32).eps if self.steps < 2**20 else 0.0
        k = torch.ceil(t * self.steps * (1 - rounding)).clamp(1, self.steps)
        sigma = self.noise.sigma(k / self.steps)
        before = torch.where(k == 1, 0.0, self.noise.sigma((k - 1) / self.steps))
        return Level(sigma, sigma, torch.full_like(sigma, self.steps), sigma - before)

    def _loss(self, model: ScoreModel, noised: NoisedBatch) -> Tensor:
        if self.graph.mask_index is None:
            return super()._loss(model, noised)
        level = noised.level
        unmasked = torch.expm1(level.removed) / torch.expm1(level.sigma)  # (B,)
        noised = noised._replace(weight=noised.weight * unmasked[:, None])
        return self._answered(CrossEntropyRequest, model, noised, level.model_sigma)

    def _terms(self, log_score: Tensor, noised: NoisedBatch) -> Tensor:
        return noised.weight * _uniform_divergence(log_score, noised, self.graph)


def _uniform_divergence(log_score: Tensor, noised: NoisedBatch, graph: Graph) -> Tensor:
    """KL(q(x_s | x_t, x_0), p(x_s | x_t)) of every position, (B, L) float64."""
    x_t, x_0, weight, level = noised[:4]
    q = _uniform_step(level, x_t == x_0, graph.vocab_size)
    read = weight != 0
    total, log_x_0 = row_sums(log_score, x_t, x_0, graph, "affine", read.double())
    # The step's probabilities: alpha s_y + beta, and gamma for x_t; their sum is always 1.
    step = ReverseInputs(x_t, level.sigma, level.removed, None, *process(graph), "analytic")
    alpha, beta, gamma = reverse_coefficients(step, total, torch.zeros_like(total))
    mass = graph.vocab_size * kept_and_lost(step)[0]
    alpha, gamma = alpha / mass, gamma / mass
    beta = alpha * beta
    every = read & (q.other > 0)
    logs, _ = row_sums(log_score, x_t, x_0, graph, "log", torch.where(every, alpha, 0.0), beta)
    at_x_0 = _weighted_log(q.at_x_0 - q.other, alpha * log_x_0.exp() + beta)
    cross = q.other * logs + at_x_0 + _weighted_log(q.at_x_t, gamma)
    return torch.where(read, q.entropy - cross, 0.0)


class _Step(NamedTuple):
    """The probabilities q(x_s | x_t, x_0), (B, L) float64.

    Attributes:
        other: that x_s is a given state other than x_0 and x_t.
        at_x_0: that x_s = x_0 (``other`` where x_0 = x_t).
        at_x_t: that x_s = x_t.
        entropy: sum of q ln q.
    """

    other: Tensor
    at_x_0: Tensor
    at_x_t: Tensor
    entropy: Tensor


def _uniform_step(level: Level, same: Tensor, size: int) -> _Step:
    """By Bayes' rule from p(x_t | x_s), p(x_s | x_0) and p(x_t | x_0)."""
    own_d, off_d = _transition(level.removed, size)
    own_s, off_s = _transition(level.sigma - level.removed, size)
    own_t, off_t = _transition(level.sigma, size)
    whole = torch.where(same, own_t, off_t)  # p(x_t | x_0)
    other = off_d * off_s / whole
    at_x_0 = torch.where(same, other, off_d * own_s / whole)
    at_x_t = own_d * torch.where(same, own_s, off_s) / whole
    rest = size - 2.0 + same.double()
    entropy = rest * torch.xlogy(other, other) + torch.xlogy(at_x_t, at_x_t)
    entropy = entropy + torch.where(same, 0.0, torch.xlogy(at_x_0, at_x_0))
    return _Step(other, at_x_0, at_x_t, entropy)


def _transition(sigma: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(B, 1): the probabilities of staying and of one other token, at noise sigma (B,)."""
    off = -torch.expm1(-sigma)[:, None] / size
    return torch.exp(-sigma)[:, None] + off, off


def _weighted_log(weight: Tensor, p: Tensor) -> Tensor:
    """weight * ln p, and 0 where the weight is 0, for any p."""
    return torch.where(weight != 0, weight * torch.where(weight != 0, p, 1.0).log(), 0.0)
