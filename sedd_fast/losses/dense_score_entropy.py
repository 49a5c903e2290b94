"""Score entropy for a :class:`sedd_fast.DenseGraph`: any rate matrix, plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.losses.objective import NoisedBatch, Objective
from sedd_fast.process.dense_graph import DenseGraph, sample_transition, score_entropy


@dataclass(frozen=True)
class DenseScoreEntropyLoss(Objective):
    """:class:`sedd_fast.ScoreEntropyLoss` with a dense graph; its arguments, errors and result.

    Example:
        >>> DenseScoreEntropyLoss(DenseGraph(Q), LogLinearNoise(), "mean")(model, x_0).backward()
    """

    graph: DenseGraph

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.graph, DenseGraph):
            raise TypeError(
                f"graph must be sedd_fast.DenseGraph(Q), got {type(self.graph).__name__}; "
                "ScoreEntropyLoss is for Absorbing(V) and Uniform(V)"
            )

    def _transition(self, x_0: Tensor, sigma: Tensor, generator: torch.Generator | None) -> Tensor:
        return sample_transition(x_0, sigma, self.graph, generator)

    def _terms(self, log_score: Tensor, noised: NoisedBatch) -> Tensor:
        x_t, x_0, weight, level = noised[:4]
        entropy = score_entropy(log_score, level.sigma, x_t, x_0, self.graph)  # (B, L)
        return torch.where(weight != 0, weight * entropy, 0)
