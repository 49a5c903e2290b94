"""Score entropy at a random time: SEDD's training objective.

For one sequence, at a time t in (sampling_eps, 1],

    loss = sigma'(t) * sum over positions of score_entropy(model(x_t, sigma(t)), ...)

in nats; its mean over t is an upper bound of -log p(x_0), but for the times below sampling_eps.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equation 10 and algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.losses.objective import NoisedBatch, Objective
from sedd_fast.models.interface import ScoreEntropyRequest, ScoreModel, takes_request
from sedd_fast.ops import score_entropy
from sedd_fast.process.graphs import Graph


@dataclass(frozen=True)
class ScoreEntropyLoss(Objective):
    """Score entropy as an objective: ``loss = objective(model, x_0)``.

    A :class:`sedd_fast.SEDD`, also inside a wrapper of torch, never forms log scores: its fused
    head computes the loss (three matrix products with "mean" and "sum", four with "none").

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

    def _loss(self, model: ScoreModel, noised: NoisedBatch) -> Tensor:
        x_t, x_0, weight, level = noised
        if self.reduction == "mean":  # the factor of a scalar has to be known in the forward
            weight = weight / max(len(x_0), 1)
        reduction = "none" if self.reduction == "none" else "sum"
        asked = ScoreEntropyRequest(x_0, weight, reduction)
        loss = entropy_of(model, self.graph, x_t, level.sigma, asked)
        if self.reduction == "mean" and len(x_0) == 0:
            return loss + torch.nan  # the mean of no sequence, of zero gradient, as elsewhere
        return loss.sum(-1) if reduction == "none" else loss


def entropy_of(
    model: ScoreModel, graph: Graph, x_t: Tensor, sigma: Tensor, asked: ScoreEntropyRequest
) -> Tensor:
    """Score entropy of a network at x_t, through its fused head where it has one.

    Args:
        model: ``(x_t (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``; one that takes requests
            (:mod:`sedd_fast.models.interface`) never forms these.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        x_t: (B, L) int64.
        sigma: (B,), total noise of x_t.
        asked: clean tokens, weights and reduction.

    Returns:
        nats: (B, L), or () for "mean" (over all positions) and "sum".
    """
    if takes_request(model, graph, ScoreEntropyRequest):
        return model(x_t, sigma, asked)
    log_score = model(x_t, sigma)  # (B, L, dim)
    return score_entropy(log_score, sigma, x_t, asked.x_0, graph, asked.row_weight, asked.reduction)
