"""Any rate matrix over a small vocabulary, by matrix exponentials, in plain torch.

``sample`` and ``infill`` take a ``DenseGraph(Q)`` like ``Absorbing(V)`` and ``Uniform(V)``; its
loss is ``DenseScoreEntropyLoss``. The functions below do what the operations of the same name do
for these two. They build (B, n, n) and (B, L, n) tensors, and are meant for vocabularies of at most
hundreds of states.

With M = exp(sigma Q), so that M[y, x] = p(x_t = y | x_0 = x), and scores s_y = p_t(y) / p_t(x_t):

    score entropy:     sum over y != x_t of Q[x_t, y] (s_y - r_y ln s_y + r_y (ln r_y - 1)),
                       r_y = M[y, x_0] / M[x_t, x_0]
    "analytic" step:   p(y) = max(0, (exp(-d Q) s)_y exp(d Q)[x_t, y])
    "euler" step:      p(y) = h Q[x_t, y] s_y for y != x_t,  p(x_t) = max(0, 1 - their sum)

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), equations 5, 17 and 19.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.types import Device

from sedd_fast.backends.categorical import draw, inverse_cdf
from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.names import STEP_METHODS, StepMethod
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._uniforms import Generator, torch_uniform, uniforms
from sedd_fast.process.graphs import Graph


@dataclass(frozen=True, eq=False, init=False)
class DenseGraph(Graph):
    """A process with rate matrix Q: ``Q[y, x]`` is the rate of jumps from x to y != x.

    Its ``mask_index`` is None: no state is treated as a mask, so no position counts as unmasked.

    Args:
        rates: (n, n), Q; columns sum to 0. Kept as float64 on the CPU.
        vocab_size: real tokens, states 0 .. vocab_size - 1; all n by default. The others, such
            as a mask, are never in the data and never drawn by the last step.

    Raises:
        TypeError: no real tensor.
        ValueError: not square, a negative rate, a column that does not sum to 0, or a limit that
            depends on where the process starts.

    Example:
        >>> cycle = torch.roll(torch.eye(5), 1, 0) - torch.eye(5)
        >>> tokens = sample(model, DenseGraph(cycle), noise, (4, 16))
    """

    kind = "dense"
    rates: Tensor
    limit: Tensor

    def __init__(self, rates: Tensor, vocab_size: int | None = None) -> None:
        arguments.check_tensor("rates", rates)
        rates = rates.detach().to("cpu", torch.float64)
        _check_rates(rates)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "limit", _stationary(rates))
        super().__init__(len(rates) if vocab_size is None else vocab_size)
        if self.vocab_size > len(rates):
            raise ValueError(
                f"vocab_size is {self.vocab_size}, but rates has only {len(rates)} states"
            )

    @property
    def dim(self) -> int:
        return len(self.rates)

    def rate_matrix(self) -> Tensor:
        return self.rates.clone()

    def transition_matrix(self, sigma: float) -> Tensor:
        return self.transitions(torch.tensor([sigma], dtype=torch.float64))[0]

    def transitions(self, sigma: Tensor) -> Tensor:
        """exp(sigma Q) of every level: (B,) -> (B, n, n) float64 on the device of sigma."""
        levels = sigma.double()[:, None, None]
        ended = torch.isinf(levels)
        grown = torch.matrix_exp(torch.where(ended, 0.0, levels) * self.rates.to(sigma.device))
        return torch.where(ended, self.limit.to(sigma.device)[:, None], grown)

    def _limit(self, shape: tuple[int, ...], device: Device, generator: Generator | None) -> Tensor:
        u = torch_uniform(shape, torch.device(device or "cpu"), generator)
        return inverse_cdf(self.limit.to(u.device).cumsum(0), u)


def sample_transition(
    x_0: Tensor, sigma: Tensor | float, graph: DenseGraph, generator: Generator | None = None
) -> Tensor:
    """x_t ~ M[:, x_0] of every position; (B, L) int64 -> (B, L) int64."""
    arguments.check_tokens("x_0", x_0)
    levels = arguments.per_sequence("sigma", sigma, x_0)
    return categorical(_columns(graph.transitions(levels), x_0), x_0, generator)


def score_entropy(
    log_score: Tensor, sigma: Tensor | float, x_t: Tensor, x_0: Tensor, graph: DenseGraph
) -> Tensor:
    """The score entropy of every position, (B, L); differentiable in log_score (B, L, n)."""
    levels = arguments.per_sequence("sigma", sigma, x_t)
    reached = _columns(graph.transitions(levels), x_0)  # (B, L, n): M[y, x_0]
    ratio = reached / reached.gather(-1, x_t[..., None])
    constant = torch.where(ratio > 0, ratio * (ratio.clamp(min=1e-300).log() - 1), 0)
    scores = at_least_fp32(log_score)
    rate = _reverse_rates(graph, x_t)
    terms = scores.exp() - torch.where(ratio > 0, ratio * scores, 0) + constant
    return torch.where(rate > 0, rate * terms, 0).sum(-1).to(scores.dtype)


def reverse_weights(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor | float,
    dsigma: Tensor | float | None,
    graph: DenseGraph,
    method: StepMethod = "analytic",
) -> Tensor:
    """The unnormalised probabilities of a reverse step, (B, L, n) float64.

    The arguments are those of :func:`sedd_fast.reverse_step`.
    """
    arguments.check_choice("method", method, STEP_METHODS)
    removed = sigma if method == "denoise" or dsigma is None else dsigma
    d = arguments.per_sequence("dsigma", removed, x_t)
    own = torch.nn.functional.one_hot(x_t, graph.dim).bool()
    score = log_score.double().masked_fill(own, 0.0).exp()  # the score of x_t itself is 1
    if method == "euler":
        moves = d[:, None, None] * _reverse_rates(graph, x_t) * score
        return torch.where(own, 1 - moves.sum(-1, keepdim=True), moves).clamp(min=0)
    stale = torch.einsum("byz,blz->bly", graph.transitions(-d), score)
    weights = (stale * _rows(graph.transitions(d), x_t)).clamp(min=0)
    if method == "denoise":
        weights[..., graph.vocab_size :] = 0
    return weights


def leap_weights(log_score: Tensor, x: Tensor, h: Tensor, graph: DenseGraph) -> Tensor:
    """Probabilities of a leap of size h, (B, L, n) float64: exp(-h R) to stay, the rest by rate."""
    rates = _reverse_rates(graph, x)
    rates = torch.where(rates > 0, rates * log_score.double().exp(), 0)
    total = rates.sum(-1, keepdim=True)  # R
    jumps = -torch.expm1(-h * total) * rates / total.clamp(min=1e-300)
    return jumps.scatter(-1, x[..., None], torch.exp(-h * total))


def categorical(weights: Tensor, like: Tensor, generator: Generator | None) -> Tensor:
    """A state of every position from weights (B, L, n), by the inverse CDF of u1."""
    return draw(weights, uniforms(like, None, generator)[..., 1])


def _rows(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix[b, x[b, l], :]: (B, n, n), (B, L) -> (B, L, n)."""
    return matrix.gather(1, x[..., None].expand(-1, -1, matrix.shape[-1]))


def _columns(matrix: Tensor, x: Tensor) -> Tensor:
    return _rows(matrix.transpose(1, 2), x)


def _reverse_rates(graph: DenseGraph, x: Tensor) -> Tensor:
    """(B, L, n) float64: Q[x, y], 0 at y = x."""
    rates = graph.rates.to(x.device)
    return (rates - rates.diag().diag())[x]


def _check_rates(rates: Tensor) -> None:
    if rates.dim() != 2 or rates.shape[0] != rates.shape[1] or len(rates) < 2:
        raise ValueError(f"rates must have shape (n, n), n at least 2, got {tuple(rates.shape)}")
    if not bool(rates.isfinite().all()) or bool(((rates - rates.diag().diag()) < 0).any()):
        raise ValueError("rates must be finite and, off the diagonal, at least 0")
    if float(rates.sum(0).abs().max()) > 1e-6 * float(rates.abs().max()):
        raise ValueError(
            "every column of rates must sum to 0: column x holds the rates out of state x, and the "
            "diagonal minus their sum; transpose a matrix whose rows do"
        )


def _stationary(rates: Tensor) -> Tensor:
    """The distribution p with Q p = 0, (n,); a ValueError unless it is unique."""
    _, sizes, right = torch.linalg.svd(rates)
    if float(sizes[-2]) <= 1e-10 * float(sizes[0]):
        raise ValueError(
            "rates has more than one stationary distribution: where the process ends depends on "
            "its start; connect its states"
        )
    p = (right[-1] / right[-1].sum()).clamp(min=0)
    return p / p.sum()
