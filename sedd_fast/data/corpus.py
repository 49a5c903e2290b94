"""Corpora: documents tokenised, packed into blocks, and split into training and held-out text.

Documents are tokenised, end-of-text is put after each, all are joined, and the stream is cut into
blocks of `length` tokens. The remainder at the end is dropped (the original code drops one after
every thousand documents). `data.valid` or `data.valid_split` names the held-out text. Where neither
is set, it is cut from the training source: `data.held_out` (default 5 %) of the characters of text
files, or of the rows of a data set, in passages spread over it, or the first `data.stream_held_out`
rows of a stream. One part of a text can be much easier than another: the last 5 % of the built-in
text have half a bit per character less than the rest.

With `data.format=prompt_completion` a row of a file is one example, which is never cut or joined to
another, and whole rows are held out.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from sedd_fast.data.blocks import BlockOrder, Blocks, StreamOrder, fingerprint_of, with_end
from sedd_fast.data.completions import CompletionLengths
from sedd_fast.data.config import DataConfig
from sedd_fast.data.example_order import ExampleOrder
from sedd_fast.data.example_rows import Row, looks_like_rows, read_rows
from sedd_fast.data.examples import Examples, encode_rows
from sedd_fast.data.sources import (
    HubDataset,
    held_out_ranges,
    is_hub_name,
    kept_ranges,
    read_documents,
    split_documents,
)
from sedd_fast.data.tokenizers import Tokenizer, make_tokenizer
from sedd_fast.files.paths import expanded
from sedd_fast.files.writing import as_os_error

_log = logging.getLogger(__name__)

_ROWS = 1000  # documents tokenised at a time
_PASSAGES = 32  # of held-out text, at most
_PASSAGE_CHARS = 8  # for each token of a block, at least: two blocks of subwords


@dataclass(frozen=True)
class Corpus:
    """The tokenizer, the training blocks or examples in their order, and the held-out ones.

    `chars_per_token` is measured on the held-out text (end-of-text counts as a token): bits per
    character are bits per token divided by it. It and `held_out` are None without held-out text.
    `held_out_source` says, for every figure, where the held-out text is from. Of examples the
    characters and tokens are those of the completions, and `completion_lengths` are theirs; of a
    text it is None.
    """

    tokenizer: Tokenizer
    train: BlockOrder | StreamOrder | ExampleOrder
    held_out: Blocks | Examples | None
    chars_per_token: float | None
    held_out_source: str
    completion_lengths: CompletionLengths | None = None


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids of all documents in a row, end-of-text after each: (N,) uint16 or int32.

    Raises:
        ValueError: the tokenizer gave an id outside 0 .. vocab_size - 1.
    """
    rows = chain.from_iterable(with_end(tokenizer, texts) for texts in _batches(documents))
    tokens = np.fromiter(chain.from_iterable(rows), np.int64)
    outside = tokens[(tokens < 0) | (tokens >= tokenizer.vocab_size)]
    if outside.size:
        raise ValueError(
            f"tokens: id {outside[0]} lies outside the vocabulary 0 .. {tokenizer.vocab_size - 1}; "
            "the text was tokenised with another tokenizer than the model's"
        )
    return tokens.astype(_dtype(tokenizer))


def load_corpus(
    config: DataConfig,
    length: int,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    trained_length: int | None = None,
) -> Corpus:
    """Read, split, tokenise and pack what `config` names.

    Args:
        config: sources, split and tokenizer (see `DataConfig`).
        length: tokens per block, or of the longest example.
        seed: random seed of the order of the blocks.
        tokenizer: the tokenizer of a resumed run; None: make the one of `config.tokenizer`.
        trained_length: tokens per block of the run whose held-out text this is, which the place
            of the held-out passages depends on; None: `length`.

    Raises:
        ValueError: a source, a tokenizer or a row that cannot be used, or too little text.
    """
    if config.format == "prompt_completion":
        return _load_examples(config, length, seed, tokenizer)
    hub = is_hub_name(config.train)
    separate = config.valid is not None or (hub and config.valid_split is not None)
    order: BlockOrder | StreamOrder
    if hub and config.streaming:
        source = _hub_dataset(config, config.train, config.config, config.split)
        tokenizer = tokenizer or make_tokenizer(config.tokenizer)
        skip = 0 if separate else config.stream_held_out
        order = StreamOrder(source, tokenizer, length, seed, config.shuffle_buffer, skip)
        rest = list(source.texts(source.load().take(skip))) if skip else []
        cut_from = f"the first {skip} rows of the stream"
    else:
        load = _load_rows if hub else _load_files
        cut = replace(config, held_out=0.0) if separate else config
        tokenizer, tokens, rest, cut_from = load(cut, tokenizer, trained_length or length)
        blocks = Blocks(tokens, length, "the training text")
        order = BlockOrder(blocks, seed, config.random_offset)
    documents = _valid_documents(config) if separate else rest
    if not documents:
        return Corpus(tokenizer, order, None, None, "no held-out text")
    name = "the held-out text (a larger data.held_out, or data.valid, gives more)"
    held_out = Blocks(pack(documents, tokenizer), length, name)
    chars_per_token = sum(map(len, documents)) / len(held_out.tokens)
    source_of = "a text of its own" if separate else cut_from
    return Corpus(tokenizer, order, held_out, chars_per_token, source_of)


#: Tokenizer, training tokens, the documents cut from them as held-out text, and where from.
_Loaded = tuple[Tokenizer, np.ndarray, list[str], str]


def _load_files(config: DataConfig, tokenizer: Tokenizer | None, length: int) -> _Loaded:
    documents = read_documents(config.train)
    if looks_like_rows(documents[0]):
        _log.warning(
            "data.train: %s holds prompts and completions, but with data.format=text its lines "
            "are trained on as they stand; take data.format=prompt_completion", config.train,
        )  # fmt: skip
    train, rest, where = hold_out(documents, config, length)
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, train)
    return tokenizer, pack(train, tokenizer), rest, where


def hold_out(
    documents: Sequence[str], config: DataConfig, length: int
) -> tuple[list[str], list[str], str]:
    """Training documents, held-out documents, and what these are, for blocks of `length` tokens."""
    held_out, where = _held_out(config, sum(map(len, documents)), _PASSAGE_CHARS * length)
    return *split_documents(documents, held_out), where


def _load_examples(
    config: DataConfig, length: int, seed: int, tokenizer: Tokenizer | None
) -> Corpus:
    rows, rest, where = read_rows(config.train, "data.train"), list[Row](), "a text of its own"
    if config.valid is not None:
        rest = read_rows(config.valid, "data.valid")
    else:
        held_out, _ = _held_out(config, len(rows), shortest=1)
        rest = [row for each in held_out for row in rows[each.start : each.stop]]
        kept = kept_ranges(held_out, len(rows))
        where = f"{len(rest):,} of the {len(rows):,} rows"
        rows = [row for each in kept for row in rows[each.start : each.stop]]
    if not rows:
        raise ValueError(
            "data.held_out: it leaves no rows to train on; lower it, or give more rows"
        )
    texts = (text for row in rows for text in row.contents)
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, texts)
    train, most = encode_rows(rows, tokenizer), config.completion_length
    examples = Examples(train, length, most, tokenizer.eot, "the training examples")
    order, most = ExampleOrder(examples, seed, config.packing), examples.completion_length
    lengths = CompletionLengths(most, int(examples.loss_sizes.max()))
    if not rest:
        return Corpus(tokenizer, order, None, None, "no held-out text", lengths)
    encoded = encode_rows(rest, tokenizer)
    apart = Examples(encoded, length, most, tokenizer.eot, "the held-out examples")
    return Corpus(tokenizer, order, apart, apart.chars_per_token, where, lengths)


def _load_rows(config: DataConfig, tokenizer: Tokenizer | None, length: int) -> _Loaded:
    source = _hub_dataset(config, config.train, config.config, config.split)
    dataset = source.load()
    held_out, where = _held_out(config, len(dataset), shortest=1)
    rest = []
    if held_out:
        rows = list(chain.from_iterable(held_out))
        rest = list(source.texts(dataset.select(rows), numbers=rows))
        kept = chain.from_iterable(kept_ranges(held_out, len(dataset)))
        dataset = dataset.select(list(kept))
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, source.texts(dataset))
    return tokenizer, cached_tokens(dataset, source, tokenizer, config.cache_dir), rest, where


def _held_out(config: DataConfig, count: int, shortest: int) -> tuple[list[range], str]:
    """The ranges that are held out of `count` characters or rows, and their description.

    A passage has at least `shortest` of them, where there are so many.
    """
    share, passages = config.held_out, 1
    if config.held_out_at == "spread":
        passages = min(max(int(share * count / shortest), 1), _PASSAGES)
    percent = f"{100 * share:.3g} %"
    spread = f"{passages} passages spread over the text, {percent} of it"
    where = spread if passages > 1 else f"the last {percent} of the text"
    return held_out_ranges(count, share, passages), where


def _valid_documents(config: DataConfig) -> list[str]:
    name = config.train if config.valid is None else config.valid
    if not is_hub_name(name):
        return read_documents(name)
    configuration = config.config if config.valid is None else config.valid_config
    source = _hub_dataset(config, name, configuration, config.valid_split or "validation")
    loaded = source.load()
    return list(source.texts(loaded.take(config.stream_held_out) if config.streaming else loaded))


def _hub_dataset(
    config: DataConfig, source: str | list[str], configuration: str | None, split: str
) -> HubDataset:
    name = str(source).removeprefix("hf:")
    return HubDataset(name, configuration, split, config.text_column, config.streaming)


def cached_tokens(
    dataset: Any, source: HubDataset, tokenizer: Tokenizer, cache_dir: str | None
) -> np.ndarray:
    """The packed tokens of a data set as a memory-mapped file, written once.

    The file is named by the data set's and the tokenizer's fingerprints. Beside it a JSON file has
    the hash of the tokens; where they differ, both are written again. `cache_dir` defaults to
    ~/.cache/sedd_fast (or $XDG_CACHE_HOME/sedd_fast).
    """
    root = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    folder = expanded(cache_dir or Path(root) / "sedd_fast")
    key = f"{dataset._fingerprint} {source.treatment} {tokenizer.fingerprint}"
    path = folder / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    tokens = _read_tokens(path)
    if tokens is None:
        folder.mkdir(parents=True, exist_ok=True)
        with as_os_error(path):
            _write_tokens(path, source.texts(dataset), tokenizer)
            tokens = np.load(path, mmap_mode="r")
            described = {"data": source.name, "fingerprint": fingerprint_of(tokens)}
            path.with_suffix(".json").write_text(json.dumps(described) + "\n")
    return tokens


def _read_tokens(path: Path) -> np.ndarray | None:
    """The tokens of a cached file; None where there is none, or it is not as it was written."""
    if not path.is_file():
        return None
    try:
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tokens = np.load(path, mmap_mode="r")
        if tokens.ndim == 1 and described["fingerprint"] == fingerprint_of(tokens):
            return tokens
    except Exception as error:  # numpy raises errors of many kinds for a damaged header
        _log.debug("%s: %r", path, error)
    _log.warning("%s is damaged or of an older version, and is written again", path)
    return None


def _write_tokens(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    whole = path.with_suffix(f".{os.getpid()}.npy")
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        for batch in _batches(texts):
            pack(batch, tokenizer).tofile(raw)
        if raw.tell() == 0:
            remedy = "check data.split and data.text_column"
            raise ValueError(f"data: the data set has no text; {remedy}")
        try:
            np.save(whole, np.memmap(raw, dtype=_dtype(tokenizer), mode="r"))
            os.replace(whole, path)
        finally:
            whole.unlink(missing_ok=True)  # of a full disk


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(documents)
    return iter(lambda: list(islice(remaining, _ROWS)), [])


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
