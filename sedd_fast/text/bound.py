"""The likelihood of a text: its blocks, bounded a few at a time."""

import math
from dataclasses import dataclass

import torch

from sedd_fast.data.batches import Batch
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus, join
from sedd_fast.evaluate.completions import Completions
from sedd_fast.evaluate.likelihood import exact_likelihood
from sedd_fast.evaluate.wrapping import Wrapped
from sedd_fast.names import Mode, Times
from sedd_fast.ops._arguments import check_count
from sedd_fast.progress import Report, reported
from sedd_fast.text.drawing import check_seed
from sedd_fast.text.network import Baseline, Network, check_no_mask

EPS = 1e-3  # the lowest time of training
_ROWS = 256  # noised blocks between two reports of progress


@dataclass(frozen=True)
class TextBound:
    """Bits per token of a text: an upper bound by Monte Carlo, with its standard error.

    Standard errors are those of this estimate on this very text. They are 0 for an autoregressive
    network, whose likelihood is exact.

    Attributes:
        bound: the bounds of the blocks in nats, and what they were made with.
        text: the text in blocks, or the completions.
    """

    bound: LikelihoodBound
    text: Wrapped | Completions

    @property
    def value(self) -> float:
        """Bits per token."""
        return self.bound.bits_per_token

    @property
    def stderr(self) -> float:
        """Standard error of :attr:`value`, in bits per token."""
        return self.bound.bits_per_token_stderr

    @property
    def bits_per_char(self) -> float:
        """Bits per character of the text; NaN where the number of characters is not known."""
        return self.value * self._tokens_per_char

    @property
    def bits_per_char_stderr(self) -> float:
        """Standard error of :attr:`bits_per_char`."""
        return self.stderr * self._tokens_per_char

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return self.bound.perplexity

    @property
    def _tokens_per_char(self) -> float:
        return 1 / self.text.chars_per_token if self.text.chars_per_token else math.nan

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} +- {self.stderr:.4f} bits per token, {self.bits_per_char:.4f} +- "
            f"{self.bits_per_char_stderr:.4f} bits per character ({self.bound.description})"
        )


def bound_text(
    network: Network | Baseline,
    text: Wrapped | Completions,
    mode: Mode = "exact",
    samples: int = 32,
    times: Times = "balanced",
    max_blocks: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool | Report = False,
) -> TextBound:
    """The likelihood bound of a text in blocks, each read on its own.

    Args:
        network: an autoregressive one gives the likelihood itself; mode, samples, times and seed
            then have no effect.
        text: from :func:`sedd_fast.evaluate.wrapping.wrap`; or completions, each bounded given its
            prompt, by a diffusion network.
        mode, samples, times: those of :func:`sedd_fast.likelihood_bound`, for each block.
        max_blocks: number of blocks to evaluate, evenly spaced over the text; None: all.
        seed: random seed for the noise, 0 .. 2^64 - 1.
        batch_size: blocks at a time; it does not change the noise.
        progress: True: show the number of blocks on stderr. A function: it is called with the
            number of blocks done and their total.

    Raises:
        TypeError, ValueError: as :func:`sedd_fast.likelihood_bound`.
    """
    samples, batch_size = check_count("samples", samples), check_count("batch_size", batch_size)
    if max_blocks is not None:
        max_blocks = check_count("max_blocks", max_blocks)
    if isinstance(network, Baseline) and isinstance(text, Completions):
        raise ValueError(
            f"{text.name}: an autoregressive network is not trained on prompts and completions; "
            "take a diffusion network, or evaluate a text"
        )
    generator, parts = torch.Generator().manual_seed(check_seed(seed)), []
    total, done = min(len(text), max_blocks or len(text)), 0
    with network.autocast(), reported(progress, "bounding", "blocks") as report:
        alone = isinstance(network, Network) and _needs_equal_lengths(network, text)
        for batch in text.batches(max_blocks, 1 if alone else max(1, _ROWS // samples)):
            batch = _without_padding(batch) if alone else batch
            if isinstance(network, Baseline):
                part = exact_likelihood(network.model, batch.tokens, batch_size)
            else:
                real = True if batch.attention_mask is None else batch.attention_mask != 0
                check_no_mask(network, set(batch.tokens[real].flatten().tolist()))
                model, rows = network.model, batch.to(network.device)
                part = evaluate_corpus(
                    model, rows.tokens, model.graph, model.noise, samples, mode,
                    generator, batch_size, EPS, times=times,
                    loss_mask=rows.loss_mask, attention_mask=rows.attention_mask,
                )  # fmt: skip
            parts.append(part)
            done += len(batch)
            report(done, total)
    return TextBound(join(parts), text)


def _needs_equal_lengths(network: Network, text: Wrapped | Completions) -> bool:
    """Whether the batches of the text are padded, for a network that would read the padding."""
    return isinstance(text, Completions) and not network.reads_padding


def _without_padding(batch: Batch) -> Batch:
    """A batch of one sequence without the padding on its right."""
    assert batch.loss_mask is not None
    assert batch.attention_mask is not None
    length = int((batch.attention_mask != 0).sum())
    return Batch(batch.tokens[:, :length], batch.loss_mask[:, :length])
