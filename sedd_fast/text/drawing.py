"""Drawing the samples of requests, as text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sedd_fast.data.prompts import Sample, decode_samples
from sedd_fast.models.autoregressive import generate
from sedd_fast.ops._arguments import check_count
from sedd_fast.progress import Report, reported
from sedd_fast.sampling import RowStreams, SamplerConfig, Step
from sedd_fast.sampling.api import infill as fill
from sedd_fast.text.network import Baseline, Network, check_no_mask
from sedd_fast.text.requests import Request

_MOST_PAIRS = 2**28  # of positions of a padded batch: bytes of its attention mask

#: A request, and the key of the numbers that one sample of it is drawn with.
Keyed = tuple[Request, int]


def new_seed() -> int:
    """A seed for samples, drawn from torch's own generator: 0 .. 2^31 - 1."""
    return int(torch.randint(2**31, ()))


def check_seed(seed: object) -> int:
    """The seed as an int; TypeError, ValueError unless it is one of 0 .. 2^64 - 1."""
    return check_count("seed", seed, 0, most=2**64 - 1)


def draw(
    requests: Sequence[Request],
    network: Network | Baseline,
    config: SamplerConfig,
    num_samples: int,
    seed: int | Sequence[int],
    batch_size: int = 16,
    keep_after_eot: bool = False,
    progress: bool | Report = False,
) -> Iterator[tuple[Request, Sample]]:
    """Draw every request `num_samples` times: the requests with their samples, in order.

    Sample k of request j depends on the seed, j and k, and on no other request or sample, nor on
    `batch_size`.

    Args:
        requests: the texts to complete; those of an autoregressive network give no token.
        network: what to draw from. An autoregressive one draws a token a step, from left to right.
        config: the sampler; an autoregressive network takes its temperature and top_p alone.
        num_samples: samples of each request.
        seed: at least 0; or a seed for each request, of which alone its samples then depend.
        batch_size: sequences at a time, at most; shorter ones are padded.
        keep_after_eot: do not cut a sample at the first end-of-text after all given text.
        progress: True: show the steps of each batch on stderr. A function: it is called with the
            number of steps made and their total, in each batch anew.

    Raises:
        TypeError, ValueError: the sampler does not fit the network or the backend, or an
            autoregressive network is asked for what only SEDD has.
    """
    mask = None
    if config.guidance and not any(request.placed for request in requests):
        raise ValueError(
            f"guidance={config.guidance} has no effect without a prompt; leave it out, or give text"
        )
    if isinstance(network, Baseline):
        _check_baseline(requests, config)
    else:
        mask = network.model.graph.mask_index
        for request in requests:
            for _, known in request.placed:
                check_no_mask(network, known)
        config = settings_of(config, network, keep_after_eot)
    total, done = len(requests) * num_samples, 0
    lengths = {request.length for request in requests}
    may_pad = len(lengths) == 1 or isinstance(network, Baseline) or network.reads_padding
    for batch in _batches(_keyed(requests, num_samples, seed), batch_size, may_pad):
        label = "sampling"
        if len(batch) < total:
            label += f" {done + 1} to {done + len(batch)} of {total}"
        given, keys = zip(*batch, strict=True)
        with network.autocast(), reported(progress, label, "steps") as report:
            drawn, calls = _draw_batch(network, given, config, RowStreams(keys), report)
        done += len(batch)
        for request, row, made in zip(given, drawn, calls.tolist(), strict=True):
            tokens, known = row[None, : request.length], request.tensors()[1]
            [text] = decode_samples(tokens, known, network.tokenizer, mask, keep_after_eot)
            yield request, replace(text, network_calls=made)


def settings_of(config: SamplerConfig, network: Network, keep_after_eot: bool) -> SamplerConfig:
    """The settings that texts are drawn with: a sequence ends at the tokenizer's end-of-text.

    What follows is cut off: it need not be drawn, and does not change the text before it.
    """
    masks = network.model.graph.mask_index is not None
    if config.is_decoding and masks and not keep_after_eot:
        return replace(config, stop_token=network.tokenizer.eot)
    return config


def _draw_batch(
    network: Network | Baseline,
    requests: Sequence[Request],
    config: SamplerConfig,
    streams: RowStreams,
    report: Report,
) -> tuple[Tensor, Tensor]:
    """The drawn tokens of the requests, (B, L) on the CPU, L the length of the longest, and how
    often each has gone through the network, (B,).
    """
    length = max(request.length for request in requests)
    if isinstance(network, Baseline):
        shape, top_p = (len(requests), length), config.top_p
        drawn = generate(network.model, shape, top_p, config.temperature, streams, report)
        return drawn.cpu(), torch.full((len(requests),), length)
    laid_out = zip(*(request.tensors() for request in requests), strict=True)
    tokens, known = (
        pad_sequence(list(rows), batch_first=True).to(network.device) for rows in laid_out
    )
    model, lengths = network.model, torch.tensor([request.length for request in requests])
    mask = None
    if int(lengths.min()) < length:
        mask = (torch.arange(length) < lengths[:, None]).long().to(network.device)
    calls = torch.zeros(len(requests), dtype=torch.int64)

    def count(step: Step) -> None:
        nonlocal calls
        calls = step.network_calls
        report(step.index + 1, step.steps)

    drawn = fill(
        network.sampled, model.graph, model.noise, tokens, known, generator=streams,
        callback=count, attention_mask=mask, **vars(config),
    )  # fmt: skip
    return drawn.cpu(), calls.cpu()


def _check_baseline(requests: Sequence[Request], config: SamplerConfig) -> None:
    """Raise ValueError for what an autoregressive network cannot do."""
    if any(request.placed for request in requests):
        raise ValueError(
            "the network is autoregressive: it is sampled without a prompt and fills no gaps; "
            "leave the given text out, or take a SEDD network"
        )
    if replace(config, temperature=1.0, top_p=1.0) != SamplerConfig():
        raise ValueError(
            "the network is autoregressive and draws a token a step: of the settings of a sampler "
            "it takes temperature and top_p alone; leave the others out"
        )


def _keyed(requests: Sequence[Request], samples: int, seed: int | Sequence[int]) -> Iterator[Keyed]:
    """Every request as often as samples are drawn of it."""
    for number, request in enumerate(requests):
        own, place = (seed, number) if isinstance(seed, int) else (seed[number], 0)
        for key in RowStreams.of_texts(own, range(samples), place).keys:
            yield request, key


def _batches(wanted: Iterable[Keyed], size: int, may_pad: bool = True) -> Iterator[list[Keyed]]:
    """Neighbouring requests, at most ``size`` at a time, with at most as much padding as text.

    Lengths differ only where the mask of their attention is of moderate size, and with ``may_pad``.
    """
    batch: list[Keyed] = []
    longest, total = 0, 0
    for keyed in wanted:
        length = keyed[0].length
        longest, total = max(longest, length), total + length
        rows = len(batch) + 1
        is_padded = rows * longest > total
        too_much = rows * longest > 2 * total or rows * longest**2 > _MOST_PAIRS
        if batch and (rows > size or (is_padded and (too_much or not may_pad))):
            yield batch
            batch, longest, total = [], length, length
        batch.append(keyed)
    if batch:
        yield batch
