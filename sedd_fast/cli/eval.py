"""`sedd-fast eval`."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sedd_fast.cli import options as shared
from sedd_fast.cli.manual import RARE
from sedd_fast.cli.output import Result, figure
from sedd_fast.files.paths import expanded
from sedd_fast.names import DATA_SETS, DataFormat, Mode, Times, Wrap
from sedd_fast.version import __version__

if TYPE_CHECKING:
    from sedd_fast.evaluate.completions import Completions
    from sedd_fast.evaluate.wrapping import Wrapped
    from sedd_fast.text.bound import TextBound
    from sedd_fast.text.network import Baseline, Network

_FIGURES = ("perplexity", "perplexity_stderr", "bits_per_token", "bits_per_token_stderr")
#: Options of the bound, which an autoregressive network does not need.
OF_BOUND = ("mode", "samples", "times", "seed")


@dataclass(frozen=True)
class EvalOptions:
    """The options of `sedd-fast eval`."""

    model: shared.Model
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files in UTF-8, globs too; or one of " + ", ".join(DATA_SETS) + ".",
            show_default="the text that the run --model held out",
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A copy on disk of the data set TEXT: a file or a directory.",
            show_default="from the hub",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The split of the data set TEXT.",
            show_default="that of the papers",
            **RARE,
        ),
    ] = None
    format: Annotated[
        DataFormat | None,
        typer.Option(
            metavar="NAME",
            help="text; or prompt_completion: JSON lines with prompts and completions, or the "
            "messages of a chat. The bound is that of the completions given their prompts.",
            show_default="as the run --model was trained",
            **RARE,
        ),
    ] = None
    wrap: Annotated[
        Wrap,
        typer.Option(
            metavar="HOW",
            help="How the text is cut into blocks. sedd: rows are joined, with an end-of-text "
            "after each, and cut. mdlm: the same with an end-of-text at both ends of a block. "
            "separate: each row is a block.",
            **RARE,
        ),
    ] = "sedd"
    mode: Annotated[
        Mode,
        typer.Option(
            metavar="NAME",
            help="exact: a strict upper bound. normalised: a strict bound for the model whose "
            "scores are made to sum to one (absorbing graph only). paper: the integral as "
            "published, not a strict bound.",
        ),
    ] = "exact"
    samples: Annotated[
        int,
        typer.Option(
            metavar="N", min=2, help="Noise levels a block; the error falls as 1/sqrt(N)."
        ),
    ] = 32
    times: Annotated[
        Times,
        typer.Option(
            metavar="HOW",
            help="How the noise levels and masks of a block are drawn. balanced: masks spread "
            "evenly over the positions (uniform graph, --mode paper: as stratified). stratified: "
            "two levels in each of half as many slices as --samples. antithetic: in mirrored "
            "pairs.",
            **RARE,
        ),
    ] = "balanced"
    max_blocks: Annotated[
        int | None,
        typer.Option(
            **shared.COUNT,
            help="Blocks to evaluate, evenly spaced.",
            show_default="all",
        ),
    ] = None
    length: shared.Length = None
    batch_size: Annotated[shared.BatchSize, shared.Renamed(("--batch",))] = 16
    seed: Annotated[int, typer.Option(**shared.SEED, help="Random seed of the noise.")] = 0
    device: shared.DeviceName = "auto"
    dtype: shared.Dtype = "float32"
    tokenizer: shared.TokenizerName = None
    adapter: shared.AdapterOption = None
    trust_remote_code: shared.TrustRemoteCode = False
    as_json: shared.Json = False
    save: shared.SaveTo = None


@shared.expand_options
def evaluate(context: typer.Context, options: EvalOptions) -> None:
    """Bound the likelihood of a text: perplexity, bits per token and character.

    The text is cut into blocks, each read on its own; -log p of every block
    is bounded from above by Monte Carlo over noise levels. Standard errors
    are those of this estimate on this text. Tokens at the end that fill no
    block are left out and counted. A named data set is detokenised as the
    published zero-shot perplexities assume. For an autoregressive network
    the likelihood itself is computed, without error. Of a run that was
    trained on prompts, blocks are completions, bounded given their prompts.

    [bold]Examples[/]
      sedd-fast eval --model runs/demo
      sedd-fast eval --model runs/demo book.txt "more/*.txt" --samples 128
      sedd-fast eval --model louaaron/sedd-small wikitext2 --save wt2.json
      sedd-fast eval --model louaaron/sedd-small ptb --data ptb.valid.txt
      sedd-fast eval --model runs/dates dates-test.jsonl
    """
    from sedd_fast.text.bound import bound_text
    from sedd_fast.text.network import Baseline, load_any

    network = load_any(
        options.model, options.tokenizer, options.device, options.dtype, options.adapter,
        options.trust_remote_code,
    )  # fmt: skip
    if isinstance(network, Baseline):
        shared.refuse_given(context, OF_BOUND, "the likelihood of an autoregressive model is exact")
    text = _find_text(network, options)
    found = bound_text(
        network, text, options.mode, options.samples, options.times, options.max_blocks,
        options.seed, options.batch_size, progress=True,
    )  # fmt: skip
    record = _record(network, found, options)
    _result(record).write(options.save, options.as_json)


def _completions(network: "Network | Baseline", options: EvalOptions) -> "Completions":
    """The completions to evaluate: those of files, or those that the run held out."""
    from sedd_fast.data.examples import Examples, read_examples
    from sedd_fast.evaluate.completions import Completions
    from sedd_fast.text.network import Network, corpus_of_run

    if options.data or options.split or options.wrap != "sedd":
        raise ValueError(
            "--data, --split, --wrap: only valid with --format text; prompts and completions are "
            "read from files of JSON lines, each by itself"
        )
    length, tokenizer = options.length or network.model.config.length, network.tokenizer
    if options.files:
        trained = network.completions if isinstance(network, Network) else None
        extended_to = 1 if trained is None else trained.extended_to
        try:
            examples = read_examples(options.files, tokenizer)
        except ValueError as error:
            if options.format is not None:
                raise
            raise ValueError(
                f"{error} (the run was trained on prompts and completions; to evaluate a text, add "
                "--format text)"
            ) from error
        made = Examples(examples, length, extended_to, tokenizer.eot, "the evaluation")
        return Completions(made, ", ".join(options.files))
    name, corpus = corpus_of_run(options.model, network, length) or ("", None)
    if corpus is None or not isinstance(corpus.held_out, Examples):
        raise ValueError(
            f"eval: {options.model} is no run directory with held-out completions; name a file of "
            "JSON lines"
        )
    name = f"the held-out part of {name}: {corpus.held_out_source}"
    return Completions(corpus.held_out, name)


def _find_text(network: "Network | Baseline", options: EvalOptions) -> "Wrapped | Completions":
    """The text to evaluate, in blocks: a named data set, files, or what the run held out."""
    from sedd_fast.data.blocks import Blocks
    from sedd_fast.data.copies import named_rows
    from sedd_fast.data.datasets import NAMED
    from sedd_fast.data.sources import read_documents
    from sedd_fast.evaluate.wrapping import Wrapped, wrap
    from sedd_fast.text.network import corpus_of_run

    trained_on = "prompt_completion" if getattr(network, "completions", None) else "text"
    if (options.format or trained_on) == "prompt_completion":
        return _completions(network, options)
    length = options.length or network.model.config.length
    names, copy, split = options.files or [], options.data, options.split
    named = len(names) == 1 and names[0] in NAMED and not Path(names[0]).is_file()
    if not named and (copy or split):
        raise ValueError(
            f"--data, --split: only valid with the name of one data set ({', '.join(NAMED)}), got "
            f"{' '.join(names) or 'no name'}; a file needs no option: sedd-fast eval FILE"
        )
    if named:
        if split and copy and expanded(copy).is_file():
            raise ValueError(f"--split: {copy} is a file, all of it is read; leave out --split")
        name = f"{names[0]}, {split or NAMED[names[0]].evaluated}"
        name += f", from {copy}" if copy else ""
        documents = named_rows(names[0], split, copy)
        return wrap(documents, network.tokenizer, length, options.wrap, name)
    if names:
        _check_files(names)
        documents = read_documents(names)
        return wrap(documents, network.tokenizer, length, options.wrap, ", ".join(names))
    if options.wrap != "sedd":
        raise ValueError(
            f"--wrap: the held-out text is in blocks already, got {options.wrap}; name a TEXT"
        )
    name, corpus = corpus_of_run(options.model, network, length) or ("", None)
    held_out = None if corpus is None else corpus.held_out
    if corpus is None or not isinstance(held_out, Blocks) or corpus.chars_per_token is None:
        raise ValueError(
            f"eval: {options.model} is no run directory with a held-out text; name a TEXT"
        )
    name = f"the held-out part of {name}: {corpus.held_out_source}"
    return Wrapped.of_blocks(held_out, corpus.chars_per_token, name)


def _check_files(names: list[str]) -> None:
    """Raise ValueError for a file that does not exist and is nearly the name of a data set."""
    for name in names:
        close = difflib.get_close_matches(name, DATA_SETS, n=1, cutoff=0.8)
        if close and not expanded(name).exists():
            raise ValueError(
                f"eval: there is no file {name!r}; did you mean the data set {close[0]}? It is "
                f"named alone: sedd-fast eval {close[0]}"
            )


def _record(
    network: "Network | Baseline", found: "TextBound", options: EvalOptions
) -> dict[str, Any]:
    from sedd_fast.evaluate.completions import Completions
    from sedd_fast.text.bound import EPS
    from sedd_fast.text.network import Baseline

    text, bound = found.text, found.bound
    of_text: dict[str, Any] = {"format": "text", "wrap": getattr(text, "wrap", None)}
    if isinstance(text, Completions):
        count = len(bound.nats)
        of_text["format"] = "prompt_completion"
        of_text["nats_per_completion"] = bound.total_nats / count
        of_text["nats_per_completion_stderr"] = bound.total_stderr / count
    drawn: dict[str, Any] = {"times": options.times, "seed": options.seed, "eps": EPS}
    if isinstance(network, Baseline):
        drawn = dict.fromkeys(drawn)  # an exact likelihood draws no noise
    return {
        "version": __version__,
        "model": network.source,
        "tokenizer": network.tokenizer.fingerprint,
        "tokenizer_name": network.tokenizer_name,
        "text": text.name,
        "estimator": bound.description,
        **{name: getattr(bound, name) for name in ("strict", "mode", "samples")},
        "batch_size": options.batch_size,
        "max_blocks": options.max_blocks,
        **drawn,
        **{name: getattr(bound, name) for name in _FIGURES},
        "bits_per_char": found.bits_per_char,
        "bits_per_char_stderr": found.bits_per_char_stderr,
        "nats": bound.total_nats,
        "tokens": bound.total_tokens,
        "blocks": len(bound.nats),
        "blocks_in_text": len(text),
        "block_length": text.block_length,
        **of_text,
        "tokens_left_over": text.left_over,
        "chars_per_token": text.chars_per_token,
        "dtype": network.precision,
        "device": str(network.device),
    }


def _result(record: dict[str, Any]) -> Result:
    of = "of {blocks_in_text:,} ".format(**record) * (record["max_blocks"] is not None)
    upto = "up to " * (record["wrap"] == "separate")
    tokens = "{tokens:,} in {blocks:,} {0}blocks of {1}{block_length}".format(of, upto, **record)
    of_completions = record["format"] == "prompt_completion"
    if of_completions:
        tokens = (
            "{tokens:,} in {blocks:,} {0}completions, with the end-of-text that ends and extends "
            "them; with their prompts up to {block_length}"
        ).format(of, **record)
    if record["tokens_left_over"]:
        tokens += ", {tokens_left_over} at the end of the text left out".format(**record)
    about = {
        "model": record["model"],
        "tokenizer": "{tokenizer_name} ({tokenizer})".format(**record),
        "text": record["text"],
        "tokens": tokens,
        **({} if of_completions else {"wrapping": record["wrap"]}),
        "estimator": record["estimator"],
        "network": "{dtype} on {device}, {batch_size} blocks at a time".format(**record),
    }
    if record["seed"] is not None:
        about["noise"] = "seed {seed}, lowest time {eps:g}".format(**record)
    figures = {
        name.replace("_per_", "/"): figure(record[name], record[f"{name}_stderr"], 4)
        for name in ("perplexity", "bits_per_token", "bits_per_char")
    }
    if of_completions:
        each = record["nats_per_completion"], record["nats_per_completion_stderr"]
        figures = {"nats/completion": figure(*each, 4), **figures}
    return Result(record, about, figures)
