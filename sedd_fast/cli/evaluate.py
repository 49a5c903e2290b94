"""`sedd-fast eval`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Annotated, Any

import torch
import typer

from sedd_fast.cli.errors import refuse_given
from sedd_fast.cli.eval_text import find_text
from sedd_fast.cli.network import Baseline, Network, Precision, load_any
from sedd_fast.cli.output import SaveTo, pairs, results, save_json, write_json
from sedd_fast.cli.sampler_options import (
    COUNT,
    SEED,
    DeviceName,
    Dtype,
    Model,
    TokenizerName,
)
from sedd_fast.data.datasets import NAMED
from sedd_fast.evaluate import LikelihoodBound, evaluate_corpus, join
from sedd_fast.evaluate.corpus import Wrapped
from sedd_fast.evaluate.likelihood import exact_likelihood
from sedd_fast.progress import counted
from sedd_fast.version import __version__

_ROWS = 256  # noised blocks between two reports of progress


class Mode(str, Enum):
    """The three bounds of `likelihood_bound`."""

    exact = "exact"
    paper = "paper"
    normalised = "normalised"


class Times(str, Enum):
    """How a block's noise levels are placed."""

    stratified = "stratified"
    antithetic = "antithetic"


class Wrap(str, Enum):
    """How a text falls into blocks."""

    sedd = "sedd"
    mdlm = "mdlm"
    separate = "separate"


@dataclass(frozen=True)
class Settings:
    """Of one evaluation; they stand in the record. `eps` is the lowest time of training."""

    mode: str
    times: str
    samples: int
    batch_size: int
    max_blocks: int | None
    seed: int
    eps: float = 1e-3


#: Options of a bound, which an autoregressive network does not need.
OF_BOUND = ("mode", "samples", "times", "seed")


def evaluate(
    context: typer.Context,
    model: Model,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files in UTF-8, globs too; or one of " + ", ".join(NAMED) + ".",
            show_default="the text that the run --model held out",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A copy on disk of the data set that TEXT names: a file or a directory.",
            show_default="from the hub",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the data set.", show_default="that of the papers"),
    ] = None,
    wrapping: Annotated[
        Wrap,
        typer.Option(
            "--wrap",
            help="sedd: rows joined, end-of-text after each, cut into blocks. mdlm: the same with "
            "an end-of-text at both ends of a block. separate: each row alone.",
        ),
    ] = Wrap.sedd,
    mode: Annotated[
        Mode,
        typer.Option(
            help="exact: a strict upper bound. normalised: one of the model with its scores made "
            "to sum to one (absorbing). paper: the integral as published, not a strict bound."
        ),
    ] = Mode.exact,
    samples: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, help="Noise levels for each block; the error falls as 1/sqrt."
        ),
    ] = 32,
    times: Annotated[
        Times,
        typer.Option(
            help="stratified: a level in each of --samples slices. antithetic: in mirrored pairs."
        ),
    ] = Times.stratified,
    max_blocks: Annotated[
        int | None,
        typer.Option(
            "--max-blocks",
            **COUNT,
            help="Take so many blocks, evenly spaced.",
            show_default="all",
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            "-l",
            **COUNT,
            help="Tokens of a block.",
            show_default="as trained",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option("--batch", "-n", **COUNT, help="Blocks in a network call."),
    ] = 16,
    seed: Annotated[int, typer.Option(**SEED, help="Of the noise.")] = 0,
    device: DeviceName = "auto",
    dtype: Dtype = Precision.float32,
    tokenizer: TokenizerName = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    save: SaveTo = None,
) -> None:
    """Bound the likelihood of a text: perplexity, bits per token and character.

    The text is cut into blocks, each read on its own; -log p of every block
    is bounded from above by Monte Carlo over noise levels. Standard errors
    are those of this estimate on this text. Tokens at the end that fill no
    block are left out and counted. A data set by name is detokenised as the
    published zero-shot perplexities assume. Of an autoregressive network the
    likelihood itself is computed, without error.

    [bold]Examples[/]
      sedd-fast eval --model runs/demo
      sedd-fast eval --model runs/demo book.txt "more/*.txt" --samples 128
      sedd-fast eval --model louaaron/sedd-small wikitext2 --save wt2.json
      sedd-fast eval --model louaaron/sedd-small ptb --data ptb.valid.txt

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path
      130  stopped with Ctrl-C
    """
    network = load_any(model, tokenizer, device, dtype)
    if isinstance(network, Baseline):
        refuse_given(context, OF_BOUND, "the likelihood of an autoregressive model is exact")
    length = length or network.model.config.length
    text = find_text(network, model, files or [], (data, split), length, wrapping.value)
    settings = Settings(mode.value, times.value, samples, batch, max_blocks, seed)
    record = _record(network, text, _bound(network, text, settings), settings)
    if save is not None:
        save_json(record, save)
    if as_json:
        write_json(record)
    else:
        _show(record)


def _bound(network: Network | Baseline, text: Wrapped, settings: Settings) -> LikelihoodBound:
    """The bound of all blocks, some at a time, so that progress can be told."""
    generator, parts = torch.Generator().manual_seed(settings.seed), []
    groups = text.blocks(settings.max_blocks)
    total, done = sum(map(len, groups)), 0
    with network.autocast(), counted("bounding", "blocks") as report:
        for some in (s for g in groups for s in g.split(max(1, _ROWS // settings.samples))):
            parts.append(_part(network, some, settings, generator))
            done += len(some)
            report(done, total)
    return join(parts)


def _part(
    network: Network | Baseline,
    blocks: torch.Tensor,
    settings: Settings,
    generator: torch.Generator,
) -> LikelihoodBound:
    if isinstance(network, Baseline):
        return exact_likelihood(network.model, blocks, settings.batch_size)
    model = network.model
    return evaluate_corpus(
        model, blocks, model.graph, model.noise, settings.samples, settings.mode, generator,
        settings.batch_size, settings.eps, times=settings.times,
    )  # fmt: skip


def _record(
    network: Network | Baseline, text: Wrapped, bound: LikelihoodBound, settings: Settings
) -> dict[str, Any]:
    per_char = 1 / text.chars_per_token if text.chars_per_token else math.nan
    drawn = asdict(settings) | {"mode": bound.mode, "samples": bound.samples}
    if isinstance(network, Baseline):
        drawn |= dict.fromkeys(("times", "seed", "eps"))  # nothing is drawn
    figures = {
        "perplexity": bound.perplexity,
        "perplexity_stderr": bound.perplexity_stderr,
        "bits_per_token": bound.bits_per_token,
        "bits_per_token_stderr": bound.bits_per_token_stderr,
        "bits_per_char": bound.bits_per_token * per_char,
        "bits_per_char_stderr": bound.bits_per_token_stderr * per_char,
        "nats": bound.total_nats,
    }
    return {
        "version": __version__,
        "model": network.source,
        "tokenizer": network.tokenizer.fingerprint,
        "text": text.name,
        "estimator": bound.description,
        "strict": bound.strict,
        **drawn,
        # JSON knows neither infinity nor NaN
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "tokens": bound.total_tokens,
        "blocks": len(bound.nats),
        "blocks_in_text": len(text),
        "block_length": text.block_length,
        "wrap": text.wrap,
        "tokens_left_over": text.left_over,
        "chars_per_token": text.chars_per_token,
        "dtype": network.precision.value,
        "device": str(network.device),
    }


def _show(record: dict[str, Any]) -> None:
    about = {
        "model": record["model"],
        "tokenizer": record["tokenizer"],
        "text": record["text"],
        "tokens": _tokens(record),
        "wrapping": record["wrap"],
        "estimator": record["estimator"],
        "network": "{dtype} on {device}, {batch_size} blocks at once".format(**record),
    }
    if record["seed"] is not None:
        about["noise"] = "seed {seed}, lowest time {eps:g}".format(**record)
    figures = {
        "perplexity": _figure(record, "perplexity"),
        "bits/token": _figure(record, "bits_per_token"),
        "bits/char": _figure(record, "bits_per_char"),
    }
    console, width = results(), len("bits/token")
    console.print(pairs(about, ("dim", ""), width))
    console.print()
    console.print(pairs(figures, ("dim", "bold"), width))


def _tokens(record: dict[str, Any]) -> str:
    of = "of {blocks_in_text:,} ".format(**record) * (record["max_blocks"] is not None)
    upto = "up to " * (record["wrap"] == "separate")
    tokens = "{tokens:,} in {blocks:,} {0}blocks of {1}{block_length}".format(of, upto, **record)
    if record["tokens_left_over"]:
        tokens += ", {tokens_left_over} at the end of the text left out".format(**record)
    return tokens


def _figure(record: dict[str, Any], name: str) -> str:
    value, error = record[name], record[f"{name}_stderr"]
    if value is None:
        return "infinite"
    return f"{value:.4f} ± {error:.4f}" if error else f"{value:.4f}"
