"""The original's formulas, written anew from the paper: what a user of eager torch runs today.

Every function makes the dense tensors that the published algorithm makes: the score rather than its
logarithm, one-hot rows, a row of the transposed transition matrix for every position, and V random
numbers for every draw (an exponential race, which is equivalent to the Gumbel trick). Nothing is
fused. The only saving is that masked rows are selected once where the original selects them twice.

Shapes: log_score, score (B, L, dim); x_t, x_0 (B, L); sigma, dsigma, step (B, 1).

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834): equation 5 (score entropy), 15-16 (the two
processes), 18-19 (Euler and Tweedie tau-leaping), algorithms 1-2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast import Graph


def sample_transition(x_0: Tensor, sigma: Tensor, graph: Graph) -> Tensor:
    """x_t: every token is replaced with probability 1 - exp(-sigma)."""
    replaced = torch.rand(x_0.shape, device=x_0.device) < 1 - torch.exp(-sigma)
    if graph.kind == "absorbing":
        return torch.where(replaced, graph.vocab_size, x_0)
    return torch.where(replaced, torch.randint_like(x_0, graph.vocab_size), x_0)


def score_entropy(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, graph: Graph
) -> Tensor:
    """The loss (B, L): sum over y != x_t of w_y (s_y - r_y ln s_y + r_y (ln r_y - 1))."""
    if graph.kind == "absorbing":
        return _absorbing_entropy(log_score, sigma, x_t, x_0, graph.vocab_size)
    return _uniform_entropy(log_score, sigma, x_t, x_0, graph.vocab_size)


def _absorbing_entropy(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, mask: int
) -> Tensor:
    masked = x_t == mask
    ratio = (1 / torch.expm1(sigma)).expand(x_t.shape)[masked]  # (n,)
    rows = log_score[masked]  # (n, dim): a copy of every masked row
    log_true = rows.gather(-1, x_0[masked][:, None]).squeeze(-1)
    terms = rows[:, :mask].exp().sum(-1) - ratio * log_true + ratio * (ratio.log() - 1)
    entropy = torch.zeros(x_t.shape, dtype=terms.dtype, device=x_t.device)
    entropy[masked] = terms
    return entropy


def _uniform_entropy(log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, V: int) -> Tensor:
    E = torch.expm1(sigma)
    rho = E / (E + V)  # p(y | x_0) / p(x_0 | x_0): not 1 - V / (E + V), which cancels

    def at(tokens: Tensor, of: Tensor) -> Tensor:
        return of.gather(-1, tokens[..., None]).squeeze(-1)

    score = log_score.exp()
    positive = (score.sum(-1) - at(x_t, score)) / V
    others = (log_score.sum(-1) - at(x_t, log_score)) / V
    negative = torch.where(x_t == x_0, rho * others, others + at(x_0, log_score) / E)
    constant = torch.where(
        x_t == x_0,
        (V - 1) / V * rho * (rho.log() - 1),
        ((-rho.log() - 1) / rho - (V - 2)) / V,
    )
    return positive - negative + constant


def staggered_score(score: Tensor, dsigma: Tensor, graph: Graph) -> Tensor:
    """exp(-dsigma Q) score: p_{sigma - dsigma}(y) / p_sigma(x_t) at every state y."""
    grow, V = torch.exp(dsigma)[..., None], graph.vocab_size
    total = score.sum(-1, keepdim=True)
    if graph.kind == "uniform":
        return grow * score + (1 - grow) / V * total
    staggered = grow * score
    staggered[..., V:] += (1 - grow) * total
    return staggered


def transposed_transition(x_t: Tensor, dsigma: Tensor, graph: Graph) -> Tensor:
    """(B, L, dim): exp(dsigma Q)[x_t, y], the probability of x_t given y."""
    keep, V = torch.exp(-dsigma)[..., None], graph.vocab_size
    here = F.one_hot(x_t, graph.dim)
    if graph.kind == "uniform":
        return keep * here + (1 - keep) / V
    return keep * here + torch.where((x_t == V)[..., None], 1 - keep, 0)


def reverse_rate(score: Tensor, x_t: Tensor, graph: Graph) -> Tensor:
    """(B, L, dim): s_y Q[x_t, y], and at y = x_t minus the sum of the others."""
    V = graph.vocab_size
    rate = score / V if graph.kind == "uniform" else score * (x_t == V)[..., None]
    rate = rate.scatter(-1, x_t[..., None], 0.0)
    return rate.scatter(-1, x_t[..., None], -rate.sum(-1, keepdim=True))


def step_weights(
    log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, method: str
) -> Tensor:
    """(B, L, dim): unnormalised distribution of a reverse step; a negative weight is never drawn.

    ``dsigma`` is the noise that the step removes ("analytic"; all of it for "denoise"), or the step
    size times the rate ("euler").
    """
    score = log_score.exp()
    if method == "euler":
        here = F.one_hot(x_t, graph.dim).to(score.dtype)
        return here + dsigma[..., None] * reverse_rate(score, x_t, graph)
    weights = staggered_score(score, dsigma, graph) * transposed_transition(x_t, dsigma, graph)
    return weights[..., : graph.vocab_size] if method == "denoise" else weights


def draw(weights: Tensor) -> Tensor:
    """One state a row by an exponential race: argmax of w_y / Exp(1)."""
    arrival = -torch.log(torch.rand_like(weights) + 1e-10)
    return (weights / arrival).argmax(-1)


def reverse_step(
    log_score: Tensor, x_t: Tensor, dsigma: Tensor, graph: Graph, method: str
) -> Tensor:
    """x_s (B, L)."""
    return draw(step_weights(log_score, x_t, dsigma, graph, method))


def filtered(log_score: Tensor, x_t: Tensor, temperature: float, top_p: float) -> Tensor:
    """Log scores at a temperature, restricted to the top-p nucleus by sorting.

    The sum of a row's scores does not change.
    """
    others = log_score.scatter(-1, x_t[..., None], -torch.inf)
    shares = (others / temperature).softmax(-1)
    ordered, order = shares.sort(-1, descending=True)
    late = ordered.cumsum(-1) - ordered >= top_p
    shares = shares.masked_fill(torch.zeros_like(late).scatter(-1, order, late), 0)
    return others.logsumexp(-1, keepdim=True) + (shares / shares.sum(-1, keepdim=True)).log()
