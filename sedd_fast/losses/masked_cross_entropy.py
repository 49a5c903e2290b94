"""Masked cross entropy: the objective of MDLM, of RADD in both forms, and of LLaDA."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.losses.objective import Level, NoisedBatch, Objective
from sedd_fast.models.cross_entropy import CrossEntropyRequest, posterior_cross_entropy
from sedd_fast.models.interface import ScoreModel
from sedd_fast.names import VARIABLES, Variable
from sedd_fast.ops._arguments import check_choice

__all__ = ["MaskedCrossEntropy", "posterior_cross_entropy"]

_ALL_MASKED = 50.0  #: noise that leaves a token unmasked once in 1e21: for a mask probability of 1


@dataclass(frozen=True)
class MaskedCrossEntropy(Objective):
    """Cross entropy of the posterior s / sum(s) at masked positions: MDLM, RADD, LLaDA.

        sigma'(t) / E * sum over masked positions of [ln sum(s) - l_{x_0}]

    It is score entropy less Z - 1 - ln Z, Z = E sum(s): the same for a normalised network, and
    does not change when a row of log scores is shifted. For the log-linear schedule the weight is
    1/t. RADD calls it t-DCE. LLaDA divides by the length besides (``per_token``), and has the
    mask's logit in the sum: over a PosteriorModel with ``zero_masking=False`` this is its loss.

    It does not train the scale of a row of scores: train a
    :class:`sedd_fast.PosteriorSEDD`, or any network in a :class:`sedd_fast.PosteriorModel`.

    Args:
        graph: ``Absorbing(V)``.
        noise, reduction, sampling_eps, per_token: as in :class:`sedd_fast.ScoreEntropyLoss`.
        over: "t", or "lambda" (RADD's lambda-DCE): the times drawn, and ``t`` where given, are mask
            probabilities lambda in (0, 1], the weight is 1/lambda, and the schedule only
            determines the noise level passed to the network, clamped to its trained range.

    Raises:
        ValueError: another graph, another ``over``; as ScoreEntropyLoss.

    Example:
        >>> objective = MaskedCrossEntropy(graph, LogLinearNoise(), "mean")
        >>> objective(PosteriorModel(network, graph, takes_sigma=False), x_0).backward()

    Source: Sahoo et al. 2024 (arXiv 2406.07524), equation 10; Ou et al. 2024 (arXiv 2406.03736),
    section 3.3; Nie et al. 2025 (arXiv 2502.09992), equation 3.
    """

    over: Variable = "t"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.graph.mask_index is None:
            raise ValueError(
                f"MaskedCrossEntropy is for the absorbing graph, got {self.graph}; for the uniform "
                "one take ScoreEntropyLoss or D3PMLoss"
            )
        check_choice("over", self.over, VARIABLES)

    def _level(self, t: Tensor) -> Level:
        t = t.double()
        if self.over == "t":
            sigma, rate = self.noise(t)
            return Level(sigma, sigma, rate / torch.expm1(sigma), sigma)
        sigma = -torch.log1p(-t)
        low, high = (self.noise.sigma(torch.full_like(t, end)) for end in (self.sampling_eps, 1.0))
        return Level(sigma.clamp(max=_ALL_MASKED), sigma.clamp(low, high), 1 / t, sigma)

    def _loss(self, model: ScoreModel, noised: NoisedBatch) -> Tensor:
        return self._answered(CrossEntropyRequest, model, noised, noised.level.model_sigma)
