"""Sampling from a score network: from nothing (``sample``) or around given tokens (``infill``).

Both start at time 1, in pure noise, and make the steps of a sampler
(``sedd_fast.sampling.methods``); the known tokens of ``infill`` are set before each of them. Most
samplers walk a uniform grid of times down to ``eps`` (``timesteps``) and remove all remaining noise
in a last denoising step.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834), section 4, algorithms 2 and 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.models.attention import check_attention_mask, without_padding
from sedd_fast.models.interface import ScoreModel, device_of, evaluating
from sedd_fast.names import Method
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._uniforms import Generators, for_rows
from sedd_fast.process.graphs import Graph
from sedd_fast.process.noise import Noise
from sedd_fast.progress import tracked
from sedd_fast.sampling.config import SamplerConfig
from sedd_fast.sampling.methods import make_sampler
from sedd_fast.sampling.remask import Remask
from sedd_fast.sampling.reverse_process import ReverseProcess


@dataclass(frozen=True)
class Step:
    """What a callback receives after every step.

    Attributes:
        index: number of the step just made, from 0.
        steps: number of all steps, the denoising step included; with "confidence" and those after
            it the most that there may be.
        t: the time reached; 0 after the denoising step.
        tokens: (B, L) int64 at that time, known tokens in place; read it, do not write to it.
        network_calls: (B,) int64, how often each sequence has gone through the network so far, with
            a token left to draw; with guidance twice a step.

    Example:
        >>> made = []
        >>> sample(model, graph, noise, (4, 1024), method="threshold", callback=made.append)
        >>> calls = made[-1].network_calls
    """

    index: int
    steps: int
    t: float
    tokens: Tensor
    network_calls: Tensor


Callback = Callable[[Step], object]


def sample(
    model: ScoreModel,
    graph: Graph,
    noise: Noise,
    shape: tuple[int, int],
    steps: int | None = 128,
    method: Method = "analytic",
    denoise: bool = True,
    generator: Generators | None = None,
    eps: float = 1e-5,
    callback: Callback | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
    theta: float = 0.5,
    remask: Remask | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    legacy_fp32_gumbel: bool = False,
    threshold: float = 0.9,
    entropy_bound: float = 0.1,
    block_length: int | None = None,
    stop_token: int | None = None,
    guidance: float = 0.0,
) -> Tensor:
    """Draw sequences from the network, starting at pure noise.

    Within a step every position is drawn independently, so the distribution is exact only in the
    limit of many steps. The methods (docs/sampling.md compares them):

    - "analytic": a step removes the noise sigma(t) - sigma(s); error of order 1 / steps.
    - "euler": an Euler step of the reverse rates; the same order.
    - "tau_leaping": follows the rates at t, at most one jump a position; the same order.
    - "theta_trapezoidal": two network calls a step; a smaller error, of order 1 / steps^2 where no
      rate changes by half within a step.
    - "hit": absorbing graph only. The times of unmasking are drawn first, and only sequences in
      which a position is unmasked are computed: at most min(steps, L) + 1 network rows a sequence.
      For a network with normalised scores the distribution is that of "analytic".
    - "confidence", "margin", "entropy", "threshold", "entropy_bound": unmask first what the network
      is sure of (:mod:`sedd_fast.sampling.acceptance` has the rules and their sources). Few network
      calls, and another distribution. Absorbing graph; "entropy_bound" also uniform.

    Args:
        model: ``(tokens (B, L), sigma (B,)) -> log_score (B, L, graph.dim)``; an ``nn.Module``
            runs in eval mode and gets its own mode back.
        graph: ``Absorbing(V)``, ``Uniform(V)`` or, for a small vocabulary, ``DenseGraph(Q)``.
        noise: the schedule the network was trained with.
        shape: (B, L), number and length of the sequences.
        steps: intervals of the grid, the denoising step not counted. None, for "hit": first
            hitting, one position at a time in the order of unmasking, each at its own noise. For
            "confidence" and those after it: the most network calls of a sequence; None: one
            position a call, with "threshold" and "entropy_bound" as many as their rule accepts.
        method: one of the names above.
        denoise: end with a step that removes all noise left at ``eps``. Without it an absorbing
            result may still hold masks.
        generator: source of all randomness: a ``torch.Generator`` for the whole batch, on the CPU
            or on the device; torch's own if None. Or one for each sequence, a list or
            ``RowStreams``: a sample then does not depend on those drawn beside it.
        eps: the last time of the grid.
        callback: called with a :class:`Step` after every step: ``steps + denoise`` times, fewer
            with "hit", "confidence" and those after it.
        progress: show a progress bar on stderr.
        device: where to sample; the model's own device if None.
        theta: for "theta_trapezoidal", in (0, 1): the second network call is made at t - theta h.
        remask: for "analytic" on an absorbing graph, a :class:`Remask`: a step may mask tokens
            again, to be drawn anew.
        temperature, top_p: change which token a position jumps to, not when. With 1 and 1, the
            defaults, samples have the model's own distribution. Temperature 0, the likeliest token,
            is for "confidence" and those after it.
        legacy_fp32_gumbel: for "analytic" or "euler": draw as the original code does, with its
            float32 Gumbel noise, to reproduce published samples.
        threshold: for "threshold": the probability from which on a token is accepted.
        entropy_bound: for "entropy_bound": the most that the entropies of the positions accepted in
            a step, without the largest, may sum to; nats.
        block_length: for "confidence" and those after it, on the absorbing graph, as the next two:
            positions from the first masked one on are unmasked in blocks of this length, one after
            the other. None: one block.
        stop_token: end-of-text. A sequence ends where it is drawn after all known tokens and all
            before it is unmasked; the rest is filled with it.
        guidance: for :func:`infill`: the weight w of classifier-free guidance; the network is
            called twice a step. A sequence without known tokens is drawn as without it.

    Returns:
        (B, L) int64.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; the message names
            it.

    Example:
        >>> tokens = sample(model, graph, noise, shape=(4, 1024), steps=256)
        >>> texts = [tokenizer.decode(row.tolist()) for row in tokens]
    """
    config = SamplerConfig(
        method=method, steps=steps, denoise=denoise, eps=eps, theta=theta, remask=remask,
        temperature=temperature, top_p=top_p, legacy_fp32_gumbel=legacy_fp32_gumbel,
        threshold=threshold, entropy_bound=entropy_bound, block_length=block_length,
        stop_token=stop_token, guidance=guidance,
    )  # fmt: skip
    if guidance:
        raise ValueError(
            f"guidance={guidance} has no effect without a prompt: leave it out, or pass known "
            "tokens to infill"
        )
    shape = arguments.check_shape(shape, 0)
    process = ReverseProcess(model, graph, noise, config, for_rows(generator, shape[0]))
    start = graph.sample_limit(shape, device or device_of(model), process.generator)
    return _run(process, start, None, callback, progress)


def infill(
    model: ScoreModel,
    graph: Graph,
    noise: Noise,
    tokens: Tensor,
    known: Tensor,
    steps: int | None = 128,
    method: Method = "analytic",
    denoise: bool = True,
    generator: Generators | None = None,
    eps: float = 1e-5,
    callback: Callback | None = None,
    progress: bool = False,
    theta: float = 0.5,
    remask: Remask | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    legacy_fp32_gumbel: bool = False,
    attention_mask: Tensor | None = None,
    threshold: float = 0.9,
    entropy_bound: float = 0.1,
    block_length: int | None = None,
    stop_token: int | None = None,
    guidance: float = 0.0,
    unconditional: Tensor | None = None,
) -> Tensor:
    """Draw the unknown positions of sequences, given the known ones, wherever these are.

    The known tokens are set before every step and at the end, so they are exact in the result.
    With exact scores and many steps an absorbing graph gives the exact conditional distribution: a
    token once unmasked stays, and its time of unmasking does not matter. For a uniform graph it is
    an approximation: the network reads the clean prompt as if it had the noise of time t.

    Args:
        model, graph, noise, steps, method, denoise, generator, eps, callback, progress, theta,
            remask, temperature, top_p, legacy_fp32_gumbel, threshold, entropy_bound, block_length,
            stop_token, guidance: as in :func:`sample`.
        tokens: (B, L) int64; unknown positions may hold any value.
        known: (B, L) bool, True where the token is given.
        attention_mask: (B, L), 0 at padding, of any tokens, which are returned as they are;
            positions of equal number attend to each other alone
            (:mod:`sedd_fast.models.attention`). With a generator for each sequence and padding on
            the right a sequence is drawn as it would be by itself. None: there is no padding.
        unconditional: (B, L) int64, for ``guidance``: what the sequences without the prompt hold at
            known positions, such as another prompt. None: the mask.

    Returns:
        (B, L) int64 on the device of ``tokens``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or a known token
            is the mask or outside the vocabulary.

    Example:
        >>> tokens = torch.zeros(1, 1024, dtype=torch.int64)
        >>> known = torch.zeros(1, 1024, dtype=torch.bool)
        >>> prompt = torch.tensor(tokenizer.encode("Hi, my name is"))
        >>> tokens[:, : len(prompt)], known[:, : len(prompt)] = prompt, True
        >>> filled = infill(model, graph, noise, tokens, known)
    """
    config = SamplerConfig(
        method=method, steps=steps, denoise=denoise, eps=eps, theta=theta, remask=remask,
        temperature=temperature, top_p=top_p, legacy_fp32_gumbel=legacy_fp32_gumbel,
        threshold=threshold, entropy_bound=entropy_bound, block_length=block_length,
        stop_token=stop_token, guidance=guidance,
    )  # fmt: skip
    arguments.check_tokens("tokens", tokens)
    arguments.check_mask("known", known, tokens)
    given = tokens
    if attention_mask is not None:
        check_attention_mask(attention_mask, tokens)
        tokens = without_padding(tokens, attention_mask, graph)
        known = known | (attention_mask == 0)
    source = for_rows(generator, tokens.shape[0])
    process = ReverseProcess(
        model, graph, noise, config, source, attention_mask, known, unconditional
    )
    _check_prompt(tokens, known, graph)
    _check_unconditional(unconditional, tokens, known, config, graph)
    if config.is_decoding and attention_mask is not None:
        _check_one_document(attention_mask)
    start = graph.sample_limit(tuple(tokens.shape), tokens.device, process.generator)
    drawn = _run(process, start, (tokens, known), callback, progress)
    return drawn if attention_mask is None else torch.where(attention_mask != 0, drawn, given)


def _run(
    process: ReverseProcess,
    x: Tensor,
    prompt: tuple[Tensor, Tensor] | None,
    callback: Callback | None,
    progress: bool,
) -> Tensor:
    """From x at time 1 to the result; ``prompt`` is (tokens, known)."""
    x = _with_prompt(x, prompt)
    if x.numel() == 0:
        return x
    process.begin(x)
    sampler = make_sampler(process, x)
    with evaluating(process.model), torch.no_grad():
        for i in tracked(range(sampler.steps), "sampling", progress):
            process.begin_draw(i)
            made = sampler.step(i, x)
            if made is None:
                break
            x = _with_prompt(made[0], prompt)
            if callback is not None:
                callback(Step(i, sampler.steps, made[1], x, process.network_calls.clone()))
    return x


def _with_prompt(x: Tensor, prompt: tuple[Tensor, Tensor] | None) -> Tensor:
    """The tokens x with the known ones in place."""
    if prompt is None:
        return x
    tokens, known = prompt
    return torch.where(known, tokens, x)


def _check_prompt(tokens: Tensor, known: Tensor, graph: Graph) -> None:
    bad = known & ~graph.is_token(tokens)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        token = int(tokens[row, column])
        what = "the mask" if token == graph.mask_index else "outside the vocabulary"
        raise ValueError(
            f"tokens holds {token} at known position ({row}, {column}), which is {what}; known "
            f"tokens are {graph.tokens_in_words}: set known to False where one is to be drawn"
        )


def _check_unconditional(
    unconditional: Tensor | None,
    tokens: Tensor,
    known: Tensor,
    config: SamplerConfig,
    graph: Graph,
) -> None:
    if unconditional is None:
        return
    if not config.guidance:
        raise ValueError(
            "unconditional has an effect with guidance only; leave it out, or pass guidance=1"
        )
    arguments.check_tokens("unconditional", unconditional, tuple(tokens.shape))
    arguments.check_device("unconditional", unconditional, tokens, "tokens")
    bad = known & ~((unconditional >= 0) & (unconditional < graph.dim))
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"unconditional holds {int(unconditional[row, column])} at known position "
            f"({row}, {column}), which is no state of the graph, 0 .. {graph.dim - 1}"
        )


def _check_one_document(attention_mask: Tensor) -> None:
    """ValueError for several documents in a sequence."""
    number = attention_mask.long()
    several = number.amax(-1, keepdim=True) != number
    if bool((several & (number != 0)).any()):
        raise ValueError(
            "attention_mask has several documents in a sequence, which methods that rank positions "
            "by certainty would rank together; pass one document a sequence, padded"
        )
