"""The same mathematics at static shapes, for torch.compile(fullgraph=True): its best fair form.

Masked rows are not selected, because their number would be a dynamic shape: every row is read and
masked with ``where``. There are two kinds of functions:

- the original's algorithm: the loss under autograd, a draw by an exponential race (``race_step``);
- the algorithms of this package, as far as torch can express them: the gradient written out in the
  same graph (``entropy_with_grad``), a draw by an inverse CDF (``inverse_cdf_step``).

Of equivalent formulations the fastest one measured was kept: ``gather`` for the true token's term
rather than a comparison with every state, ``searchsorted`` rather than a count.

Shapes: log_score (B, L, dim); x_t, x_0, weight (B, L); sigma, dsigma (B, 1). The graph is a
constant to the compiler. All arithmetic is float32, whatever the dtype of the scores.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import baselines
from sedd_fast import Graph


@functools.cache
def compile_static(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled as one graph, one version per shape."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def why_unavailable(device: torch.device) -> str | None:
    """Why torch.compile cannot be timed on that device, in one line, or None."""
    probe = compile_static(lambda x: (x + 1).sum())
    try:
        probe(torch.ones(64, device=device))
    except (RuntimeError, ImportError, OSError) as error:  # dynamo's errors are RuntimeErrors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__)[:160]
    return None


def sample_transition(x_0: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
    """x_t: every token is replaced with probability 1 - exp(-sigma)."""
    V = graph.vocab_size
    replaced = torch.rand(x_0.shape, device=x_0.device) < -torch.expm1(-sigma)
    to = torch.full_like(x_0, V) if graph.kind == "absorbing" else torch.randint_like(x_0, V)
    return torch.where(replaced, to, x_0)


def _at(tokens: Tensor, of: Tensor) -> Tensor:
    return of.gather(-1, tokens[..., None]).squeeze(-1)


def entropy(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, weight: Tensor, graph: Graph
) -> Tensor:
    """The scalar sum of weight * score entropy."""
    scores, V = log_score.float(), graph.vocab_size
    E = torch.expm1(sigma)
    if graph.kind == "absorbing":
        terms = scores[..., :V].exp().sum(-1) - _at(x_0, scores) / E
        return torch.where(x_t == V, weight * (terms - (1 + E.log()) / E), 0).sum()
    a, b, c, k = _uniform_coefficients(E, x_t, x_0, V)
    score = scores.exp()
    sum_exp, sum_log = score.sum(-1) - _at(x_t, score), scores.sum(-1) - _at(x_t, scores)
    return (weight * (a * sum_exp - b * sum_log - c * _at(x_0, scores) + k)).sum()


def entropy_with_grad(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, weight: Tensor, graph: Graph
) -> tuple[Tensor, Tensor]:
    """``entropy`` and its gradient (B, L, dim), written out instead of derived by autograd."""
    scores, V = log_score.float(), graph.vocab_size
    states = torch.arange(scores.shape[-1], device=scores.device)
    true, here = states == x_0[..., None], states == x_t[..., None]
    E = torch.expm1(sigma)
    score = scores.exp()
    if graph.kind == "absorbing":
        score = torch.where(states < V, score, 0)
        terms = score.sum(-1) - _at(x_0, scores) / E
        loss = torch.where(x_t == V, weight * (terms - (1 + E.log()) / E), 0).sum()
        slope = weight[..., None] * (score - torch.where(true, 1 / E[..., None], 0))
        return loss, torch.where((x_t == V)[..., None], slope, 0).to(log_score.dtype)
    a, b, c, k = _uniform_coefficients(E, x_t, x_0, V)
    sum_exp, sum_log = score.sum(-1) - _at(x_t, score), scores.sum(-1) - _at(x_t, scores)
    loss = (weight * (a * sum_exp - b * sum_log - c * _at(x_0, scores) + k)).sum()
    slope = a * score - b[..., None] - torch.where(true, c[..., None], 0)
    return loss, torch.where(here, 0, weight[..., None] * slope).to(log_score.dtype)


def _uniform_coefficients(
    E: Tensor, x_t: Tensor, x_0: Tensor, V: int
) -> tuple[float, Tensor, Tensor, Tensor]:
    """a, b, c, k of loss = a sum exp(l) - b sum l - c l_{x_0} + k over the states y != x_t."""
    rho, clean = E / (E + V), x_t == x_0
    b = torch.where(clean, rho / V, 1 / V)
    c = torch.where(clean, 0, 1 / E)
    k = torch.where(
        clean, (V - 1) / V * rho * (rho.log() - 1), ((-rho.log() - 1) / rho - (V - 2)) / V
    )
    return 1 / V, b, c, k


def moves_and_stay(
    log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, method: str
) -> tuple[Tensor, Tensor]:
    """Unnormalised distribution of a step: weights of the other states (B, L, dim), which are 0 at
    x_t, and the weight of x_t (B, L).
    """
    score, V = log_score.float().exp(), graph.vocab_size
    here = torch.arange(score.shape[-1], device=score.device) == x_t[..., None]
    score = torch.where(here, 0, score)
    S = score.sum(-1)
    if graph.kind == "absorbing":
        masked = x_t == V
        if method == "denoise":
            return torch.where(masked[..., None], score, 0), torch.where(masked, 0.0, 1.0)
        alpha = torch.expm1(dsigma) if method == "analytic" else dsigma
        moves = torch.where(masked[..., None], alpha[..., None] * score, 0)
        return moves, torch.where(masked, (1 - alpha * S).clamp(min=0), 1.0)
    if method == "euler":
        return dsigma[..., None] / V * score, (1 - dsigma / V * S).clamp(min=0)
    change, grow = -torch.expm1(-dsigma), torch.exp(dsigma)  # 1 - e and 1 / e of e = exp(-dsigma)
    alpha = change * grow / V
    moves = (alpha[..., None] * score - (alpha * change / V * (S + 1))[..., None]).clamp(min=0)
    stay = (grow - alpha * (S + 1)) * (1 - change + change / V)
    return torch.where(here, 0, moves), stay.clamp(min=0)


def cross_entropy(log_score: Tensor, x_t: Tensor, x_0: Tensor, weight: Tensor) -> Tensor:
    """The scalar sum over masked positions of weight * -ln (s at x_0 / sum of s)."""
    V = log_score.shape[-1] - 1
    nats = log_score[..., :V].float().logsumexp(-1) - _at(x_0, log_score).float()
    return torch.where(x_t == V, weight * nats, 0.0).sum()


def squared_error(log_score: Tensor, x_t: Tensor, rho: Tensor, weight: Tensor) -> Tensor:
    """The scalar sum of weight * sum over y != x_t of (s_y - rho)^2."""
    errors = (log_score.float().exp() - rho[..., None]) ** 2
    return (weight * (errors.sum(-1) - _at(x_t, errors))).sum()


def sum_of_logarithms(log_score: Tensor, x_t: Tensor, rho: Tensor, weight: Tensor) -> Tensor:
    """The scalar sum of weight * sum over y != x_t of ln(s_y + rho)."""
    logs = (log_score.float().exp() + rho[..., None]).log()
    return (weight * (logs.sum(-1) - _at(x_t, logs))).sum()


def race_step(log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, method: str) -> Tensor:
    """x_s (B, L) by an exponential race over all states, as the original draws."""
    moves, stay = moves_and_stay(log_score, x_t, dsigma, graph, method)
    here = torch.arange(moves.shape[-1], device=moves.device) == x_t[..., None]
    weights = torch.where(here, stay[..., None], moves)
    return (weights / -torch.log(torch.rand_like(weights) + 1e-10)).argmax(-1)


def filtered_step(
    log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, token_filter: tuple[float, float]
) -> Tensor:
    """x_s (B, L) by an exponential race, with ``token_filter`` = (temperature, top-p)."""
    scores = baselines.filtered(log_score.float(), x_t, *token_filter)
    return race_step(scores, x_t, dsigma, graph, "analytic")


def inverse_cdf_step(
    log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, method: str
) -> Tensor:
    """x_s (B, L) from two uniform numbers for each position: the first decides whether to move, the
    second selects the state by the cumulative weights.
    """
    moves, stay = moves_and_stay(log_score, x_t, dsigma, graph, method)
    cdf = moves.cumsum(-1)  # float32, as u is: probabilities below 1e-7 of the total are lost
    total = cdf[..., -1]
    u = torch.rand((2, *x_t.shape), device=x_t.device)
    token = torch.searchsorted(cdf, (u[1] * total)[..., None], right=True).squeeze(-1)
    moving = u[0] * (total + stay) < total
    return torch.where(moving, token.clamp(max=moves.shape[-1] - 1), x_t)
