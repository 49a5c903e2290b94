"""Score entropy at a random time: SEDD's training objective.

For one sequence, at a time t in (sampling_eps, 1],

    loss = sigma'(t) * sum over positions of score_entropy(model(x_t, sigma(t)), ...)

in nats; its mean over t is an upper bound of -log p(x_0), but for the times below sampling_eps.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equation 10 and algorithm 1.
"""

from dataclasses import dataclass

from torch import Tensor

from sedd_fast.losses.objective import NoisedBatch, Objective
from sedd_fast.models.interface import ScoreEntropyRequest, ScoreModel


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
        per_token: divide the loss of every document by the number of its positions with loss
            (LLaDA's fine-tuning); "mean" is then that over documents.

    Raises:
        ValueError: another reduction, sampling_eps outside (0, 1).

    Example:
        >>> objective = ScoreEntropyLoss(Absorbing(50257), LogLinearNoise(), reduction="mean")
        >>> objective(model, x_0).backward()
    """

    def _loss(self, model: ScoreModel, noised: NoisedBatch) -> Tensor:
        return self._answered(ScoreEntropyRequest, model, noised, noised.level.sigma)
