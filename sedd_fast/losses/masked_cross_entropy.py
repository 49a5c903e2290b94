"""Masked cross entropy: the objective of MDLM, of RADD in both forms, and of LLaDA."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.losses.objective import Level, NoisedBatch, Objective
from sedd_fast.ops import row_sums
from sedd_fast.ops._arguments import check_choice
from sedd_fast.ops._operator import is_traced
from sedd_fast.process.graphs import Graph

_ALL_MASKED = 50.0  #: noise that leaves a token unmasked once in 1e21: for a mask probability of 1
_LEAST = 1e-290  #: a sum of scores below this has lost digits, and its slope 1 / sum overflows


@dataclass(frozen=True)
class MaskedCrossEntropy(Objective):
    """Cross entropy of the posterior s / sum(s) at masked positions: MDLM, RADD, LLaDA.

        sigma'(t) / E * sum over masked positions of [ln sum(s) - l_{x_0}]

    It is score entropy less Z - 1 - ln Z, Z = E sum(s): the same for a normalised network, and
    does not change when a row of log scores is shifted. For the log-linear schedule the weight is
    1/t. LLaDA divides by the length besides. RADD calls it t-DCE.

    It does not train the scale of a row of scores: train a
    :class:`sedd_fast.PosteriorSEDD`, or any network in a :class:`sedd_fast.PosteriorModel`.

    Args:
        graph: ``Absorbing(V)``.
        noise, reduction, sampling_eps: as in :class:`sedd_fast.ScoreEntropyLoss`.
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

    over: str = "t"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.graph.mask_index is None:
            raise ValueError(
                f"MaskedCrossEntropy is for the absorbing graph, got {self.graph}; for the uniform "
                "one take ScoreEntropyLoss or D3PMLoss"
            )
        check_choice("over", self.over, ("t", "lambda"))

    def _level(self, t: Tensor) -> Level:
        t = t.double()
        if self.over == "t":
            sigma, rate = self.noise(t)
            return Level(sigma, sigma, rate / torch.expm1(sigma), sigma)
        sigma = -torch.log1p(-t)
        ends = self.noise.sigma(torch.tensor([self.sampling_eps, 1.0], dtype=torch.float64))
        low, high = ends.tolist()
        return Level(sigma.clamp(max=_ALL_MASKED), sigma.clamp(low, high), 1 / t, sigma)

    def _terms(self, log_score: Tensor, noised: NoisedBatch) -> Tensor:
        x_t, x_0, weight, _ = noised
        return posterior_cross_entropy(log_score, x_t, x_0, self.graph, weight)


def posterior_cross_entropy(
    log_score: Tensor, x_t: Tensor, x_0: Tensor, graph: Graph, weight: Tensor
) -> Tensor:
    """weight * [ln sum(s) - l_{x_0}] at masked positions, 0 elsewhere.

    Args:
        log_score: (B, L, graph.dim), up to a constant a row.
        x_t, x_0: (B, L) int64.
        graph: ``Absorbing(V)``.
        weight: (B, L); rows of weight 0 are never read.

    Returns:
        (B, L) float64 nats, differentiable in ``log_score``.
    """
    read = (x_t == graph.mask_index) & (weight != 0)
    total, log_x_0 = row_sums(log_score, x_t, x_0, graph, "affine", read.double())
    log_total = _logarithm(total, log_score, read, graph.vocab_size)
    return torch.where(read, weight * (log_total - log_x_0), 0.0)


def _logarithm(total: Tensor, log_score: Tensor, read: Tensor, vocab_size: int) -> Tensor:
    """ln of the sums of the rows that are read, (B, L) float64.

    Where the scale of scores has drifted, a row's sum may be no float64. Such rows are summed again
    from their largest score down. Whether there are any is asked of the device, but not while a
    graph is compiled or captured, nor under torch.func: nothing can answer then.
    """
    captured = total.is_cuda and torch.cuda.is_current_stream_capturing()
    if captured or is_traced():
        return torch.where(read, total, 1.0).log()
    in_range = (total > _LEAST) & total.isfinite()
    found, lost = torch.where(read & in_range, total, 1.0).log(), read & ~in_range
    if not bool(lost.any()):
        return found
    rows = log_score[lost][:, :vocab_size].double()  # (N, V)
    return found.masked_scatter(lost, rows.logsumexp(-1))
