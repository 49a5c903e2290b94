"""The operations in plain torch: what a reader learns from and every kernel is tested against.

Any device, any floating dtype; float64 in, float64 throughout. Never optimised: it makes several
tensors of size (B, L, dim) where a kernel makes none.

Every function takes validated tensors: log_score (B, L, dim); sigma, dsigma (B,) float64;
x_t, x_0 (B, L) int64; row_weight (B, L) float64 or None; u (B, L, 2) float64. Inputs may have any
strides; results are contiguous, as the operations promise torch.compile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.backends import values
from sedd_fast.backends.coefficients import entropy_coefficients, reverse_coefficients

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def devices() -> None:
    """The kinds of device it runs on: all."""


def unavailable() -> str | None:
    """Why this backend cannot be used: never."""
    return None


def wide(log_score: Tensor) -> Tensor:
    """The dtype in which rows are worked on: float64 stays, all else becomes float32."""
    return log_score if log_score.dtype == torch.float64 else log_score.float()


def other_states(x_t: Tensor, dim: int) -> Tensor:
    """(B, L, dim) bool: True at every state y != x_t."""
    return torch.arange(dim, device=x_t.device) != x_t[..., None]


def sample_transition(x_0: Tensor, sigma: Tensor, u: Tensor, graph: str, vocab_size: int) -> Tensor:
    """x_t ~ p(. | x_0): noised when u0 < 1 - exp(-sigma), to the mask or to floor(u1 * V)."""
    values.check(values.Noising(x_0, sigma, u), graph, vocab_size)
    noised = u[..., 0] < -torch.expm1(-sigma)[:, None]
    if graph == "absorbing":
        return torch.where(noised, vocab_size, x_0).contiguous()
    token = (u[..., 1] * vocab_size).long().clamp(max=vocab_size - 1)
    return torch.where(noised, token, x_0).contiguous()


def score_entropy(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    graph: str,
    vocab_size: int,
) -> Tensor:
    """(B, L): row_weight * (a * sum exp(l_y) - b * sum l_y - c * l_{x_0} + k), y != x_t."""
    values.check(values.Entropy(log_score, sigma, x_t, x_0), graph, vocab_size)
    scores = wide(log_score)
    a, b, c, k = entropy_coefficients(sigma, x_t, x_0, graph, vocab_size)
    others = other_states(x_t, scores.shape[-1])
    sum_exp = torch.where(others, scores.exp(), 0).sum(-1, dtype=torch.float64)  # (B, L)
    sum_log = torch.where(others, scores, 0).sum(-1, dtype=torch.float64)
    log_x_0 = scores.gather(-1, x_0[..., None]).squeeze(-1).double()
    # A coefficient of zero means that the term is absent, even where the score is infinite.
    loss = k + torch.where(a > 0, a * sum_exp, 0)
    loss = loss - torch.where(b > 0, b * sum_log, 0) - torch.where(c > 0, c * log_x_0, 0)
    if row_weight is not None:
        loss = torch.where(row_weight != 0, loss * row_weight, 0)
    return loss.to(scores.dtype).contiguous()


def score_entropy_backward(
    grad_loss: Tensor,
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    graph: str,
    vocab_size: int,
) -> Tensor:
    """(B, L, dim) in the dtype of log_score: the gradient of (grad_loss * loss).sum()."""
    weight = grad_loss.double() if row_weight is None else grad_loss.double() * row_weight
    return _entropy_gradient(log_score, sigma, x_t, x_0, weight, graph, vocab_size).to(
        log_score.dtype
    )


def _entropy_gradient(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    weight: Tensor,
    graph: str,
    vocab_size: int,
) -> Tensor:
    """weight * (a * exp(l_y) - b - c * [y == x_0]), 0 at x_t and where nothing weighs."""
    scores = wide(log_score)
    a, b, c, _ = entropy_coefficients(sigma, x_t, x_0, graph, vocab_size)
    a, b, c = (value.to(scores.dtype)[..., None] for value in (a, b, c))
    gradient = a * scores.exp() - b
    gradient = gradient - c * torch.nn.functional.one_hot(x_0, scores.shape[-1])
    weight = weight.to(scores.dtype)[..., None]
    read = other_states(x_t, scores.shape[-1]) & (a > 0) & (weight != 0)
    return torch.where(read, weight * gradient, 0).contiguous()


def score_entropy_with_grad(
    log_score: Tensor,
    sigma: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    row_weight: Tensor | None,
    scale: float,
    graph: str,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """The loss (B, L) and the gradient (B, L, dim) of ``scale * loss.sum()``.

    The gradient of float16 scores is float32: a loss scaler has yet to lift it into range.
    """
    loss = score_entropy(log_score, sigma, x_t, x_0, row_weight, graph, vocab_size)
    weight = torch.ones_like(x_t, dtype=torch.float64) if row_weight is None else row_weight
    gradient = _entropy_gradient(log_score, sigma, x_t, x_0, weight * scale, graph, vocab_size)
    return loss, gradient.to(values.gradient_dtype(log_score.dtype))


def _shifted_exp(log_score: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """exp(l_y - m), 0 at x_t, (B, L, dim) float64, and m, (B, L): the largest score of the row."""
    others = other_states(x_t, log_score.shape[-1])
    scores = torch.where(others, wide(log_score).double(), -torch.inf)
    shift = scores.amax(-1).clamp(min=-700)  # exp(700) is still a float64
    return torch.exp(scores - shift[..., None]), shift


def reverse_weights(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> tuple[Tensor, Tensor]:
    """Unnormalised law of a reverse step: (B, L, dim) float64 with 0 at x_t, and (B, L) for x_t.

    Rows are shifted by their maximum, so no finite score overflows; the law does not change.
    """
    others = other_states(x_t, log_score.shape[-1])
    exp_scores, shift = _shifted_exp(log_score, x_t)
    sum_exp = exp_scores.sum(-1)
    alpha, beta, gamma = reverse_coefficients(
        sigma, dsigma, sum_exp, x_t, torch.exp(-shift), graph, vocab_size, method
    )
    gamma = torch.where(alpha > 0, gamma, 1.0)  # no noise removed: it stays, whatever the scores
    weights = alpha[..., None] * exp_scores + beta[..., None]
    moves = others & (alpha > 0)[..., None]
    if graph == "absorbing":
        moves = moves & (x_t == vocab_size)[..., None]
        # Nothing of an unmasked row is read: it stays, whatever its scores are.
        gamma = torch.where(x_t == vocab_size, gamma, 1.0)
    return torch.where(moves, weights, 0).clamp(min=0), gamma.clamp(min=0)


def reverse_step(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    u: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> Tensor:
    """x_s (B, L): u0 decides whether the token moves, u1 where to, by the inverse CDF."""
    values.check(values.Reverse(log_score, x_t, sigma, dsigma, u), graph, vocab_size)
    weights, stay = reverse_weights(log_score, x_t, sigma, dsigma, graph, vocab_size, method)
    cdf = weights.cumsum(-1)  # (B, L, dim) float64, states in natural order
    moving = cdf[..., -1]
    total = moving + stay
    drawable = (total > 0) & torch.isfinite(total)
    values.check_drawable(drawable)
    token = torch.searchsorted(cdf, (u[..., 1] * moving)[..., None].contiguous(), right=True)
    # u1 * moving may round up to moving itself: the last state that has weight then.
    last = torch.searchsorted(cdf, moving[..., None].contiguous(), right=False)
    moved = torch.minimum(token, last).squeeze(-1)
    return torch.where(drawable & (u[..., 0] * total < moving), moved, x_t).contiguous()


def reverse_probs(
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> Tensor:
    """(B, L, dim): the law of :func:`reverse_step`, float64 for float64 scores, else float32."""
    values.check(values.Reverse(log_score, x_t, sigma, dsigma, None), graph, vocab_size)
    weights, stay = reverse_weights(log_score, x_t, sigma, dsigma, graph, vocab_size, method)
    total = weights.sum(-1) + stay
    values.check_drawable((total > 0) & torch.isfinite(total))
    probs = weights.scatter(-1, x_t[..., None], stay[..., None]) / total[..., None]
    return probs.to(wide(log_score).dtype).contiguous()


def reverse_probs_backward(
    grad_probs: Tensor,
    log_score: Tensor,
    x_t: Tensor,
    sigma: Tensor,
    dsigma: Tensor,
    graph: str,
    vocab_size: int,
    method: str,
) -> Tensor:
    """(B, L, dim) in the dtype of log_score: the chain rule through :func:`reverse_probs`.

    With weights w of sum W, p = w / W and h = (grad - sum grad * p) / W, the gradient in l_y is
    exp(l_y) * (alpha * h_y + dbeta/dS * sum of h_z + dgamma/dS * h_{x_t}), each h only where its
    weight is above 0. beta and gamma are linear in (S, unit): their slope is their value at (1, 0).
    """
    weights, stay = reverse_weights(log_score, x_t, sigma, dsigma, graph, vocab_size, method)
    total = (weights.sum(-1) + stay)[..., None]
    own = x_t[..., None]
    probs = weights.scatter(-1, own, stay[..., None]) / total
    grad = grad_probs.double()
    h = (grad - (grad * probs).sum(-1, keepdim=True)) / total  # (B, L, dim)
    one, zero = torch.ones_like(stay), torch.zeros_like(stay)
    alpha, slope_beta, slope_gamma = reverse_coefficients(
        sigma, dsigma, one, x_t, zero, graph, vocab_size, method
    )
    h_moves = torch.where(weights > 0, h, 0)
    h_stay = torch.where(stay > 0, h.gather(-1, own).squeeze(-1), 0)
    shared = slope_beta * h_moves.sum(-1) + slope_gamma * h_stay  # (B, L)
    gradient = _shifted_exp(log_score, x_t)[0] * (alpha[..., None] * h_moves + shared[..., None])
    if graph == "absorbing":
        gradient = torch.where((x_t == vocab_size)[..., None], gradient, 0)
    return gradient.to(log_score.dtype).contiguous()
