"""The text that `sedd-fast eval` evaluates: a named data set, files, or what a run held out."""

from __future__ import annotations

import difflib
from pathlib import Path

from sedd_fast.cli.network import Baseline, Network
from sedd_fast.data.copies import named_rows
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.datasets import NAMED
from sedd_fast.data.sources import read_documents
from sedd_fast.evaluate.wrapping import Wrapped, wrap
from sedd_fast.train.config import load_config
from sedd_fast.train.run_directory import RunDirectory


def find_text(
    network: Network | Baseline,
    model: str,
    words: list[str],
    source: tuple[str | None, str | None],
    length: int,
    how: str,
) -> Wrapped:
    """`words` as the text to evaluate; `source` is (--data, --split) of a data set."""
    named = len(words) == 1 and words[0] in NAMED and not Path(words[0]).is_file()
    if not named and any(source):
        raise ValueError(
            f"--data, --split: they go with the name of one data set ({', '.join(NAMED)}), got "
            f"{' '.join(words) or 'no name'}; a file needs no option: sedd-fast eval FILE"
        )
    if named:
        copy, split = source
        (name,) = words
        if split and copy and Path(copy).expanduser().is_file():
            raise ValueError(f"--split: {copy} is a file, all of it is read; leave out --split")
        where = f"{name}, {split or NAMED[name].evaluated}" + (f", from {copy}" if copy else "")
        return wrap(named_rows(name, split, copy), network.tokenizer, length, how, where)
    if words:
        _check_files(words)
        return wrap(read_documents(words), network.tokenizer, length, how, ", ".join(words))
    if how != "sedd":
        raise ValueError(f"--wrap: the held-out text is in blocks already, got {how}; name a TEXT")
    return _held_out(network, model, length)


def _check_files(words: list[str]) -> None:
    """ValueError for a word that is no file and, nearly, the name of a data set."""
    for word in words:
        close = difflib.get_close_matches(word, NAMED, n=1, cutoff=0.8)
        if close and not Path(word).expanduser().exists():
            raise ValueError(
                f"eval: there is no file {word!r}; did you mean the data set {close[0]}? It is "
                f"named alone: sedd-fast eval {close[0]}"
            )


def _held_out(network: Network | Baseline, model: str, length: int) -> Wrapped:
    run = RunDirectory(Path(model).expanduser())
    if not run.config.is_file():
        raise ValueError(f"eval: {model} is no run directory with a held-out text; name a TEXT")
    config = load_config(files=[run.config])
    corpus = load_corpus(config.data, length, config.training.seed, network.tokenizer)
    if corpus.held_out is None or corpus.chars_per_token is None:
        raise ValueError(f"eval: the run {model} held no text out; name a TEXT")
    name = f"the held-out part of {config.data.train}"
    return Wrapped.of_blocks(corpus.held_out, corpus.chars_per_token, name)
