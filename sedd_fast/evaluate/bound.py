"""Likelihood of text: upper bounds on -log p(x_0) in nats, by Monte Carlo, with standard errors.

``likelihood_bound`` takes a batch, ``evaluate_corpus`` any number of blocks of a text. Both build
an :class:`Estimator`, which checks the settings. There are three modes:

**exact** (default), a strict bound on the negative log likelihood of the reverse process.
Absorbing, in the mask probability m = 1 - exp(-sigma), for which sigma'(t) dt / E = dm / m:

    -log p(x_0) <= integral over m in (0, 1] of dm / m * E[sum over masked positions of bracket]
    bracket = E S - ln(E s_{x_0}) - 1 = E * score entropy
    E = expm1(sigma),  S = sum of the scores s over the V real tokens

No term has to be added at either end: at m = 1 the process is at its limit, at m = 0 at the data.
The noise level passed to the network is sigma clamped to its trained range, and E is computed from
the clamped sigma, so that E s is the network's posterior and the bound stays strict.

The integrand's 1/m has an infinite variance if m is drawn uniformly (a single mask at m near 0
weighs 1/m). So the number n of masks is drawn first: the measure dm / m on (masks, m) gives mass
1/n to each n in 1 .. L; given n, m is the n-th smallest of L uniforms, and the masks are the
positions at or below it (the integral of m^(n-1) (1-m)^(L-n) over all C(L, n) subsets). Hence

    integral = sum over n of 1/n * E[sum over the n masked of bracket]
             = E over n uniform in 1 .. L of [L * mean over the n masked of bracket]

which has the same value, with bounded weights (standard errors 2 to 6 times smaller where
measured). ``times`` says how n and the positions of a sequence's samples are drawn: "balanced"
masks all positions equally often, and draws small n more often with less weight
(:mod:`sedd_fast.evaluate.balanced`); "stratified" and "antithetic" draw n uniformly, and the
positions of a sample, or of a pair, independently of all others.

Uniform, in t from t0 = ``eps`` to 1, k = exp(-sigma(1)):

    -log p(x_0) <= integral of E[sigma'(t) * score entropy] dt
                   + KL(p(x_1 | x_0), uniform) + E[-log p(x_0 | x_t0)]
    KL per position = (1 + (V-1) k) / V * ln(1 + (V-1) k) + (V-1) / V * (1 - k) ln(1 - k)

where the last term uses the distribution of the sampler's denoising step; it is infinite where
that step cannot draw x_0 at all. This integral and that of "paper" are sampled over noise levels
(:mod:`sedd_fast.evaluate.levels`), whatever the schedule, which only sets the limits.

**normalised** (absorbing): the same integral with the cross entropy of the posterior s / sum(s) in
place of the bracket. It is smaller by Z - 1 - ln Z, Z = E S: a strict bound for the renormalised
model.

**paper**: the integral from ``eps`` to 1 alone, as published. It is not a strict bound: for an
absorbing graph the KL divergence at t = 1 is infinite, and it is left out; so is the reconstruction
below ``eps``.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), theorem 3.6 and appendix A; Ou et al. 2024
(arXiv 2406.03736) for the integral in m and over the number of masks.
"""

import numpy as np
import torch
from torch import Tensor

from sedd_fast.evaluate.estimators import Estimator
from sedd_fast.evaluate.result import LikelihoodBound
from sedd_fast.evaluate.sequences import Sequences
from sedd_fast.models.interface import ScoreModel, device_of
from sedd_fast.names import Mode, Times
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise

#: Types other than int64 in which tokens are stored.
_STORED = (torch.int32, torch.int16, torch.uint16, torch.int8, torch.uint8)


def likelihood_bound(
    model: ScoreModel,
    x_0: Tensor,
    graph: Graph,
    noise: Noise,
    samples: int = 1024,
    mode: Mode = "exact",
    generator: torch.Generator | None = None,
    batch_size: int = 16,
    eps: float = 1e-3,
    progress: bool = False,
    times: Times = "balanced",
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> LikelihoodBound:
    """An upper bound on -log p(x_0) of each sequence, in nats, by Monte Carlo.

    The module's docstring has the formulas of the modes.

    Args:
        model: ``(x_t (R, L), sigma (R,)) -> log_score (R, L, graph.dim)``; an ``nn.Module`` runs
            in eval mode and gets its own mode back. A :class:`sedd_fast.SEDD` never forms log
            scores for the entropies of "exact" and "paper": its fused head gives them.
        x_0: (B, L) int64, clean tokens on the model's device.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        noise: the schedule the network was trained with.
        samples: noise levels per sequence, at least 2; with fewer than 16 the standard error is
            much wider than the deviation, or (antithetic) may be too small.
        mode: "exact", "paper", or "normalised" (absorbing only).
        generator: source of all randomness; torch's own if None. The noise does not depend on
            ``batch_size``.
        batch_size: sequences per network call.
        eps: the lowest time in training (its ``sampling_eps``); for lower times, the network is
            given the noise level of ``eps``.
        progress: show a progress bar on stderr.
        times: how noise levels and masks are drawn. "balanced": masks that are spread evenly over
            the positions, the least variance; for "paper" and the uniform graph, which have no
            number of masks, it is "stratified". "antithetic": in mirrored pairs (``samples`` a
            multiple of 4). :class:`sedd_fast.evaluate.draws.Batches` defines the last two.
        loss_mask: (B, L) bool: the bound is that of the tokens at its True positions given all
            others, such as a completion given its prompt. None: of all tokens.
        attention_mask: (B, L), 0 at padding, which is not read and not counted; positions of equal
            number attend to each other alone (:mod:`sedd_fast.models.attention`).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; the message names it.

    Example:
        >>> bound = likelihood_bound(model, x_0, graph, noise, samples=256)
        >>> print(f"{bound.bits_per_token:.3f} +- {bound.bits_per_token_stderr:.3f} bits per token")
    """
    estimator = Estimator(graph, noise, mode, samples, eps, batch_size, times, generator, progress)
    return estimator(model, Sequences.checked(x_0, graph, loss_mask, attention_mask), x_0.device)


def evaluate_corpus(
    model: ScoreModel,
    blocks: Tensor | np.ndarray,
    graph: Graph,
    noise: Noise,
    samples_per_block: int = 32,
    mode: Mode = "exact",
    generator: torch.Generator | None = None,
    batch_size: int = 16,
    eps: float = 1e-3,
    progress: bool = False,
    times: Times = "balanced",
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> LikelihoodBound:
    """The bound over a whole text: :func:`likelihood_bound` of its blocks.

    Many blocks need few samples each: the errors of the blocks are independent, so the relative
    error of the total falls with ``samples_per_block`` times the number of blocks.

    Args:
        blocks: (N, L) integers, a tensor anywhere or an array; moved to the model's device batch
            by batch.
        samples_per_block: at least 2.
        model, graph, noise, mode, generator, batch_size, eps, progress, times, loss_mask,
            attention_mask: as in :func:`likelihood_bound`.

    Returns:
        A bound with N sequences; ``perplexity`` and ``bits_per_token`` are those of the text.

    Raises:
        TypeError, ValueError: as :func:`likelihood_bound`.
    """
    tokens = torch.tensor(blocks) if isinstance(blocks, np.ndarray) else blocks
    if isinstance(tokens, Tensor) and tokens.dtype in _STORED:
        tokens = tokens.long()
    estimator = Estimator(
        graph, noise, mode, samples_per_block, eps, batch_size, times, generator, progress
    )
    sequences = Sequences.checked(tokens, graph, loss_mask, attention_mask, "blocks")
    return estimator(model, sequences, device_of(model))
