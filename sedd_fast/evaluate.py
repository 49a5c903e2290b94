"""Likelihood of text: upper bounds on -log p(x_0) in nats, by Monte Carlo, with standard errors.

``likelihood_bound`` takes a batch, ``evaluate_corpus`` any number of blocks of a text. Three modes:

**exact** (default), a strict bound on the negative log likelihood of the reverse process.
Absorbing, in the mask probability m = 1 - exp(-sigma), for which sigma'(t) dt / E = dm / m:

    -log p(x_0) <= integral over m in (0, 1] of dm / m * E[sum over masked positions of bracket]
    bracket = E S - ln(E s_{x_0}) - 1 = E * score entropy
    E = expm1(sigma),  S = sum of the scores s over the V real tokens

No term is owed at either end: at m = 1 the process is at its limit, at m = 0 at the data. sigma is
given to the network clamped to its trained range, and E is that of the clamped sigma, so that
E s is the network's posterior and the bound stays strict.

The integrand's 1/m has an infinite variance if m is drawn uniformly (a single mask at m near 0
weighs 1/m). So the number n of masks is drawn first: the law of (masks, m) under dm / m has
mass 1/n for each n in 1 .. L, with m then the n-th smallest of L uniforms and the masks the
positions at or below it (the integral of m^(n-1) (1-m)^(L-n) over all C(L, n) subsets); hence

    integral = sum over n of 1/n * E[sum over the n masked of bracket]
             = E over n uniform in 1 .. L of [L * mean over the n masked of bracket]

the same number, with bounded weights (standard errors 2 to 6 times smaller where measured). n is
stratified over a sequence's samples.

Uniform, in t from t0 = ``eps`` to 1 (t stratified), k = exp(-sigma(1)):

    -log p(x_0) <= integral of E[sigma'(t) * score entropy] dt
                   + KL(p(x_1 | x_0), uniform) + E[-log p(x_0 | x_t0)]
    KL per position = (1 + (V-1) k) / V * ln(1 + (V-1) k) + (V-1) / V * (1 - k) ln(1 - k)

the last term with the law of the sampler's denoising step; it is infinite where that step cannot
draw x_0 at all.

**normalised** (absorbing): the same with the posterior s / sum(s): its cross entropy in place of
the bracket, which is less by Z - 1 - ln Z, Z = E S. A strict bound of the renormalised model.

**paper**: the integral from ``eps`` to 1 alone, as published. Not a strict bound: for an absorbing
graph the end at t = 1 would owe an infinite KL, and below ``eps`` the reconstruction is dropped.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), theorem 3.6 and appendix A; Ou et al. 2024
(arXiv 2406.03736) for the integral in m and over the number of masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.graphs import Graph
from sedd_fast.losses import ScoreModel
from sedd_fast.noise import Noise
from sedd_fast.ops import reverse_probs, sample_transition, score_entropy
from sedd_fast.ops._arguments import check_graph, check_tokens
from sedd_fast.sampling import device_of, evaluating, tracked

MODES = ("exact", "paper", "normalised")
_NARROW = (torch.int32, torch.int16, torch.uint16, torch.int8, torch.uint8)  # of stored corpora


@dataclass(frozen=True)
class LikelihoodBound:
    """A bound on the negative log likelihood of sequences, and how well it is known.

    A standard error here is the Monte Carlo error of the bound on this very text (it shrinks with
    ``samples``); it does not say how another text would fare.

    Attributes:
        nats: (N,) float64 on the CPU, the bound of each sequence.
        stderr: (N,) float64, its standard error (see :func:`paired_stderr`).
        tokens: tokens in each sequence, L.
        mode: "exact", "paper" or "normalised".
        samples: Monte Carlo samples of each sequence.
        strict: whether the expected value is an upper bound; False for "paper".
    """

    nats: Tensor
    stderr: Tensor
    tokens: int
    mode: str
    samples: int
    strict: bool

    @property
    def total_nats(self) -> float:
        """The bound of all sequences together."""
        return float(self.nats.sum())

    @property
    def total_tokens(self) -> int:
        """Tokens in all sequences together."""
        return self.nats.numel() * self.tokens

    @property
    def total_stderr(self) -> float:
        """Standard error of :attr:`total_nats`; the sequences are drawn independently."""
        return float(self.stderr.square().sum().sqrt())

    @property
    def perplexity(self) -> float:
        """exp(total nats / total tokens)."""
        return _exp(self.total_nats / self.total_tokens) if self.total_tokens else math.nan

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of :attr:`perplexity`, to first order."""
        return self.perplexity * self.bits_per_token_stderr * math.log(2)

    @property
    def bits_per_token(self) -> float:
        """Total bits over total tokens."""
        return self.bits_per(self.total_tokens)

    @property
    def bits_per_token_stderr(self) -> float:
        """Standard error of :attr:`bits_per_token`."""
        bits = self.total_stderr / math.log(2)
        return bits / self.total_tokens if self.total_tokens else math.nan

    def bits_per(self, units: int) -> float:
        """Total bits over any count of units: characters, bytes, words of the same text."""
        return self.total_nats / math.log(2) / units if units else math.nan

    @property
    def description(self) -> str:
        """The estimator in a few words, for a report."""
        strictness = "upper bound" if self.strict else "not a strict bound"
        return f"{self.mode}, {strictness}, {self.samples} samples a sequence"


def likelihood_bound(
    model: ScoreModel,
    x_0: Tensor,
    graph: Graph,
    noise: Noise,
    samples: int = 1024,
    mode: str = "exact",
    generator: torch.Generator | None = None,
    batch_size: int = 16,
    eps: float = 1e-3,
    progress: bool = False,
) -> LikelihoodBound:
    """An upper bound on -log p(x_0) of each sequence, in nats, by Monte Carlo.

    The module's docstring has the formulas of the modes.

    Args:
        model: ``(x_t (R, L), sigma (R,)) -> log_score (R, L, graph.dim)``; an ``nn.Module`` runs
            in eval mode and gets its own mode back.
        x_0: (B, L) int64, clean tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        noise: the schedule the network was trained with.
        samples: noise levels per sequence, stratified; at least 2.
        mode: "exact", "paper", or "normalised" (absorbing only).
        generator: source of all randomness; torch's own if None. On the CPU the result does not
            depend on ``batch_size``.
        batch_size: sequences per network call.
        eps: the lowest time in training (its ``sampling_eps``): below it, the network is asked at
            the noise of ``eps``.
        progress: show a progress bar on stderr.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; the message names it.

    Example:
        >>> bound = likelihood_bound(model, x_0, graph, noise, samples=256)
        >>> print(f"{bound.bits_per_token:.3f} +- {bound.bits_per_token_stderr:.3f} bits per token")
    """
    _check_tokens(x_0, graph)
    estimator = _Estimator(graph, noise, mode, samples, eps, batch_size)
    return estimator(model, x_0, x_0.device, generator, progress)


def evaluate_corpus(
    model: ScoreModel,
    blocks: Tensor | np.ndarray,
    graph: Graph,
    noise: Noise,
    samples_per_block: int = 32,
    mode: str = "exact",
    generator: torch.Generator | None = None,
    batch_size: int = 16,
    eps: float = 1e-3,
    progress: bool = False,
) -> LikelihoodBound:
    """The bound over a whole text: :func:`likelihood_bound` of its blocks, moved when needed.

    Many blocks need few samples each: the errors of the blocks are independent, so the relative
    error of the total falls with ``samples_per_block`` times the number of blocks.

    Args:
        blocks: (N, L) integers, a tensor anywhere or an array; moved to the model's device batch
            by batch.
        samples_per_block: at least 2.
        model, graph, noise, mode, generator, batch_size, eps, progress: as in
            :func:`likelihood_bound`.

    Returns:
        A bound with N sequences; ``perplexity`` and ``bits_per_token`` are those of the text.

    Raises:
        TypeError, ValueError: as :func:`likelihood_bound`.
    """
    tokens = torch.tensor(blocks) if isinstance(blocks, np.ndarray) else blocks
    if isinstance(tokens, Tensor) and tokens.dtype in _NARROW:
        tokens = tokens.long()
    _check_tokens(tokens, graph, "blocks")
    estimator = _Estimator(graph, noise, mode, samples_per_block, eps, batch_size)
    return estimator(model, tokens, device_of(model), generator, progress)


def limit_divergence(sigma: float, vocab_size: int) -> float:
    """KL(p(. | x_0) at total noise sigma, uniform over V) of one position, in nats."""
    kept = math.exp(-sigma)
    moved = -math.expm1(-sigma)
    own = (1 + (vocab_size - 1) * kept) / vocab_size  # p(x_0 | x_0)
    tail = moved * math.log(moved) if moved > 0 else 0.0
    return own * math.log1p((vocab_size - 1) * kept) + (vocab_size - 1) / vocab_size * tail


def paired_stderr(values: Tensor) -> Tensor:
    """Standard error of the mean of each row of stratified samples (B, S), S >= 2: (B,).

    One sample a stratum says nothing of the spread inside it, so neighbouring strata are paired:
    the sum of squared differences within the pairs, over S^2. It is unbiased where neighbours have
    one mean, and too large, never too small, in expectation otherwise; a plain sample variance
    would add the whole spread between strata. An odd last sample is paired a second time.
    """
    count = values.shape[1]
    pairs = [values[:, 0 : count - 1 : 2] - values[:, 1:count:2]]
    if count % 2:
        pairs.append(values[:, -1:] - values[:, -2:-1])
    return torch.cat(pairs, dim=1).square().sum(1).sqrt() / count


@dataclass(frozen=True)
class _Estimator:
    """The settings of one evaluation, checked, and the evaluation itself."""

    graph: Graph
    noise: Noise
    mode: str
    samples: int
    eps: float
    batch_size: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            allowed = ", ".join(map(repr, MODES))
            raise ValueError(f"mode must be one of {allowed}, got {self.mode!r}")
        if self.mode == "normalised" and self.graph.kind != "absorbing":
            raise ValueError(
                f"mode 'normalised' is for the absorbing graph, got {self.graph}; use 'exact'"
            )
        for name, value, least in (
            ("samples", self.samples, 2),
            ("batch_size", self.batch_size, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}"
                )
        if not 0 < self.eps < 1:
            raise ValueError(f"eps must lie in (0, 1), got {self.eps}; the usual value is 1e-3")

    @property
    def over_masks(self) -> bool:
        """Whether the integral is over the number of masks, not over t."""
        return self.graph.kind == "absorbing" and self.mode != "paper"

    @torch.no_grad()
    def __call__(
        self,
        model: ScoreModel,
        x_0: Tensor,
        device: torch.device,
        generator: torch.Generator | None,
        progress: bool,
    ) -> LikelihoodBound:
        batches = _Batches(x_0, device, generator, self.batch_size, progress)
        term = self._over_masks if self.over_masks else self._over_time
        owes_ends = self.mode == "exact" and not self.over_masks
        with evaluating(model):
            integral = batches.draw(partial(term, model), self.samples, f"bound ({self.mode})")
            nats, stderr = integral.mean(1), paired_stderr(integral)
            if owes_ends:
                # Little has moved at eps, so this term is far less noisy: an eighth will do.
                few = max(2, self.samples // 8)
                last = batches.draw(partial(self._reconstruction, model), few, "reconstruction")
                nats = nats + last.mean(1) + x_0.shape[1] * self._divergence()
                stderr = torch.hypot(stderr, paired_stderr(last))
        strict = self.mode != "paper"
        return LikelihoodBound(nats, stderr, x_0.shape[1], self.mode, self.samples, strict)

    def _over_masks(self, model: ScoreModel, x_0: Tensor, place: Tensor, u: Tensor) -> Tensor:
        """L * mean of the bracket over n masked positions, n from ``place``; (R,)."""
        length = x_0.shape[1]
        order = u[..., 0]  # (R, L)
        count = (place * length).long().clamp(max=length - 1) + 1  # n, (R,)
        m = order.sort(-1).values.gather(-1, count[:, None] - 1)  # (R, 1)
        masked = order <= m
        sigma = self._trained(-torch.log1p(-m.squeeze(-1)))  # (R,)
        x_t = torch.where(masked, self.graph.vocab_size, x_0)
        log_score = model(x_t, sigma)  # (R, L, dim)
        weight = length / count.double()
        if self.mode == "normalised":
            return weight * _cross_entropy(log_score, x_0, masked)
        weight = weight * torch.expm1(sigma.double())
        return _entropy(log_score, sigma, x_t, x_0, self.graph, weight)

    def _trained(self, sigma: Tensor) -> Tensor:
        """Clamped to the noise levels of training; float32, as the network is given it."""
        low, high = self.noise.sigma(torch.tensor([self.eps, 1.0], dtype=torch.float64)).tolist()
        return sigma.clamp(min=low, max=high).float()

    def _over_time(self, model: ScoreModel, x_0: Tensor, place: Tensor, u: Tensor) -> Tensor:
        """(1 - eps) * sigma'(t) * score entropy at t = 1 - (1 - eps) * place; (R,)."""
        sigma, rate = self.noise(1 - (1 - self.eps) * place)
        sigma = sigma.float()
        x_t = sample_transition(x_0, sigma, self.graph, u=u)
        log_score = model(x_t, sigma)  # (R, L, dim)
        return _entropy(log_score, sigma, x_t, x_0, self.graph, (1 - self.eps) * rate)

    def _reconstruction(self, model: ScoreModel, x_0: Tensor, place: Tensor, u: Tensor) -> Tensor:
        """-log p(x_0 | x_t0) under the denoising step at t0 = eps; (R,)."""
        sigma = self.noise.sigma(torch.full_like(place, self.eps)).float()
        x_t = sample_transition(x_0, sigma, self.graph, u=u)
        log_score = model(x_t, sigma)
        nats = []
        for i in range(len(x_0)):  # one sequence at a time: its law is written out in full
            one = slice(i, i + 1)
            law = reverse_probs(log_score[one], x_t[one], sigma[one], None, self.graph, "denoise")
            nats.append(-law.gather(-1, x_0[one, :, None]).double().log().sum())
        return torch.stack(nats)

    def _divergence(self) -> float:
        """What the end at t = 1 owes at each position."""
        sigma = float(self.noise.sigma(torch.ones((), dtype=torch.float64)))
        return limit_divergence(sigma, self.graph.vocab_size)


@dataclass(frozen=True)
class _Batches:
    """Monte Carlo over the sequences of x_0: which rows share a network call, and their draws."""

    x_0: Tensor
    device: torch.device
    generator: torch.Generator | None
    batch_size: int
    progress: bool

    def draw(self, term: Callable[..., Tensor], samples: int, label: str) -> Tensor:
        """(N, samples) float64 on the CPU: ``term(x_0, place, u)`` for each sample of a sequence.

        ``place`` (R,) lies in the sample's stratum of [0, 1), ``u`` (R, L, 2) is uniform, both
        float64; one stream of numbers, row after row, whatever the batch size.
        """
        sequences, length = self.x_0.shape
        if self.x_0.numel() == 0:
            return torch.zeros(sequences, samples, dtype=torch.float64)
        rows = torch.arange(sequences * samples)
        values = []
        for row in tracked(rows.split(self.batch_size), label, self.progress):
            u = self._uniforms(len(row), 1 + 2 * length)
            place = ((row % samples).to(self.device) + u[:, 0]) / samples
            x_0 = self.x_0[(row // samples).to(self.x_0.device)].to(self.device)  # (R, L)
            values.append(term(x_0, place, u[:, 1:].reshape(len(row), length, 2)))
        return torch.cat(values).cpu().view(sequences, samples)

    def _uniforms(self, rows: int, columns: int) -> Tensor:
        draw_on = self.device if self.generator is None else self.generator.device
        u = torch.rand(rows, columns, dtype=torch.float64, device=draw_on, generator=self.generator)
        return u.to(self.device)


def _entropy(
    log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor, graph: Graph, weight: Tensor
) -> Tensor:
    """Score entropy of each sequence times its weight (R,); (R,) float64."""
    row_weight = weight[:, None].expand(x_0.shape)
    loss = score_entropy(log_score, sigma, x_t, x_0, graph, row_weight=row_weight)
    return loss.double().sum(-1)


def _cross_entropy(log_score: Tensor, x_0: Tensor, masked: Tensor) -> Tensor:
    """-log of s_{x_0} / sum of s over the real tokens, summed over masked positions; (R,)."""
    nats = []
    for scores, target, chosen in zip(log_score, x_0, masked, strict=True):
        # One sequence at a time, masked rows only: little beside the scores themselves.
        logits = scores[chosen][:, :-1].float()  # (n, V)
        nats.append(F.cross_entropy(logits, target[chosen], reduction="sum").double())
    return torch.stack(nats)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _check_tokens(x_0: Tensor, graph: Graph, name: str = "x_0") -> None:
    check_graph(graph)
    check_tokens(name, x_0)
    bad = (x_0 < 0) | (x_0 >= graph.vocab_size)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} holds {int(x_0[row, column])} at position ({row}, {column}); clean tokens are "
            f"0 .. {graph.vocab_size - 1}: are graph and tokenizer of one vocabulary?"
        )
