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
stratified over a sequence's samples, or drawn in mirrored pairs.

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

import numpy as np
import torch
from torch import Tensor

from sedd_fast.evaluate.estimators import Estimator
from sedd_fast.evaluate.result import LikelihoodBound
from sedd_fast.models.interface import ScoreModel, device_of
from sedd_fast.ops._arguments import check_graph, check_tokens
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise

_NARROW = (torch.int32, torch.int16, torch.uint16, torch.int8, torch.uint8)  # of stored corpora


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
    times: str = "stratified",
) -> LikelihoodBound:
    """An upper bound on -log p(x_0) of each sequence, in nats, by Monte Carlo.

    The module's docstring has the formulas of the modes.

    Args:
        model: ``(x_t (R, L), sigma (R,)) -> log_score (R, L, graph.dim)``; an ``nn.Module`` runs
            in eval mode and gets its own mode back. A :class:`sedd_fast.SEDD` never forms log
            scores for the entropies of "exact" and "paper": its fused head gives them.
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
        times: "stratified", or "antithetic": in mirrored pairs (``samples`` a multiple of 4);
            :class:`sedd_fast.evaluate.draws.Batches` has the law of both.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; the message names it.

    Example:
        >>> bound = likelihood_bound(model, x_0, graph, noise, samples=256)
        >>> print(f"{bound.bits_per_token:.3f} +- {bound.bits_per_token_stderr:.3f} bits per token")
    """
    _check_tokens(x_0, graph)
    estimator = Estimator(graph, noise, mode, samples, eps, batch_size, times)
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
    times: str = "stratified",
) -> LikelihoodBound:
    """The bound over a whole text: :func:`likelihood_bound` of its blocks, moved when needed.

    Many blocks need few samples each: the errors of the blocks are independent, so the relative
    error of the total falls with ``samples_per_block`` times the number of blocks.

    Args:
        blocks: (N, L) integers, a tensor anywhere or an array; moved to the model's device batch
            by batch.
        samples_per_block: at least 2.
        model, graph, noise, mode, generator, batch_size, eps, progress, times: as in
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
    estimator = Estimator(graph, noise, mode, samples_per_block, eps, batch_size, times)
    return estimator(model, tokens, device_of(model), generator, progress)


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
