"""Concrete score matching: the squared error of the ratios, which SEDD's paper compares with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sedd_fast.backends.coefficients import entropy_coefficients
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.losses.objective import Level, NoisedBatch, Objective
from sedd_fast.ops import row_sums
from sedd_fast.ops._arguments import process


@dataclass(frozen=True)
class ConcreteScoreMatching(Objective):
    """The squared error of the ratios, which score entropy replaces.

        sigma'(t) / 2 * sum over y != x_t of w_y (s_y - r_y)^2

    with the weights w_y of score entropy. Its minimum, over the network, is at the same ratios;
    its value bounds nothing, and at small noise the variance of its target is of order 1/E^2.

    Args:
        graph, noise, reduction, sampling_eps: as in :class:`sedd_fast.ScoreEntropyLoss`.

    Source: Meng et al. 2022 (arXiv 2211.00802); Lou, Meng, Ermon 2024 (arXiv 2310.16834),
    equation 4, with p(y | x_0) / p(x_t | x_0) for the ratios of p_t, as in equation 7.
    """

    in_nats: ClassVar[bool] = False

    def _level(self, t: Tensor) -> Level:
        return super()._level(t.double())

    def _terms(self, log_score: Tensor, noised: NoisedBatch) -> Tensor:
        x_t, x_0, weight, level = noised[:4]
        entropy = EntropyInputs(level.sigma, x_t, x_0, None, *process(self.graph))
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
