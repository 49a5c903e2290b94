"""Corpora: documents tokenised, packed into blocks, and split into training and held-out text.

Documents are tokenised, end-of-text is put after each, all are joined, and the stream is cut into
blocks of `length` tokens; the remainder is dropped (as the original's training does, which drops
one per thousand documents). Held-out text, unless `data.valid` or `data.valid_split` names some, is
the last `data.held_out` (default 5 %) of the training source: of its characters where it is text
files, of its rows where it is a data set, and of a stream its first `data.stream_held_out` rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sedd_fast.data.blocks import BlockOrder, Blocks, StreamOrder, with_end
from sedd_fast.data.sources import (
    HubDataset,
    characters_in,
    is_hub_name,
    read_documents,
    split_documents,
)
from sedd_fast.data.tokenizers import Tokenizer, make_tokenizer

if TYPE_CHECKING:
    from sedd_fast.data.config import DataConfig

_ROWS = 1000  # documents tokenised at a time


@dataclass(frozen=True)
class Corpus:
    """What training reads: the tokenizer, the training order, the held-out blocks.

    `chars_per_token` is measured on the held-out text (end-of-text counts as a token): bits per
    character are bits per token divided by it. It and `held_out` are None where none is held out.
    """

    tokenizer: Tokenizer
    train: BlockOrder | StreamOrder
    held_out: Blocks | None
    chars_per_token: float | None


def pack(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids of all documents in a row, end-of-text after each: (N,) uint16 or int32.

    Raises:
        ValueError: the tokenizer gave an id outside 0 .. vocab_size - 1.
    """
    pieces = [
        np.asarray(ids, dtype=np.int64)
        for texts in _batched(documents, _ROWS)
        for ids in with_end(tokenizer, texts)
    ]
    tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    _check_range(tokens, tokenizer.vocab_size)
    return tokens.astype(_dtype(tokenizer))


def load_corpus(
    config: DataConfig, length: int, seed: int = 0, tokenizer: Tokenizer | None = None
) -> Corpus:
    """Read, split, tokenise and pack what `config` names.

    Args:
        config: sources, split and tokenizer (see `DataConfig`).
        length: tokens per block.
        seed: of the order of the blocks.
        tokenizer: use this one (a resumed run's) in place of `config.tokenizer`.
    """
    if is_hub_name(config.train):
        return _load_hub(config, length, seed, tokenizer)
    documents = read_documents(config.train)
    separate = config.valid is not None
    train, rest = split_documents(documents, 0.0 if separate else config.held_out)
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, train)
    held_out = _valid_documents(config) if separate else rest
    blocks = Blocks(pack(train, tokenizer), length, "the training text")
    return Corpus(
        tokenizer,
        BlockOrder(blocks, seed, config.random_offset),
        *_held_out(held_out, tokenizer, length),
    )


def _load_hub(config: DataConfig, length: int, seed: int, tokenizer: Tokenizer | None) -> Corpus:
    source = hub_source(config)
    if config.streaming:
        return _load_stream(config, source, length, seed, tokenizer)
    dataset = source.load()
    if config.valid is None and config.valid_split is None:
        keep = round(len(dataset) * (1 - config.held_out))
        rest = list(source.texts(dataset.select(range(keep, len(dataset)))))
        dataset = dataset.select(range(keep))
    else:
        rest = _valid_documents(config)
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, source.texts(dataset))
    tokens = cached_tokens(dataset, source, tokenizer, config.cache_dir)
    order = BlockOrder(Blocks(tokens, length, source.name), seed, config.random_offset)
    return Corpus(tokenizer, order, *_held_out(rest, tokenizer, length))


def _load_stream(
    config: DataConfig, source: HubDataset, length: int, seed: int, tokenizer: Tokenizer | None
) -> Corpus:
    tokenizer = tokenizer or make_tokenizer(config.tokenizer)
    separate = config.valid is not None or config.valid_split is not None
    skip = 0 if separate else config.stream_held_out
    order = StreamOrder(source, tokenizer, length, seed, config.shuffle_buffer, skip)
    rest = _valid_documents(config) if separate else list(source.texts(source.load().take(skip)))
    return Corpus(tokenizer, order, *_held_out(rest, tokenizer, length))


def hub_source(config: DataConfig) -> HubDataset:
    """The training data set that `config` names."""
    name = str(config.train).removeprefix("hf:")
    return HubDataset(name, config.config, config.split, config.text_column, config.streaming)


def _valid_documents(config: DataConfig) -> list[str]:
    name = config.train if config.valid is None else config.valid
    if not is_hub_name(name):
        return read_documents(name)
    configuration = config.config if config.valid is None else config.valid_config
    split = config.valid_split or "validation"
    source = HubDataset(
        name.removeprefix("hf:"), configuration, split, config.text_column, config.streaming
    )
    loaded = source.load()
    return list(source.texts(loaded.take(config.stream_held_out) if config.streaming else loaded))


def _held_out(
    documents: list[str], tokenizer: Tokenizer, length: int
) -> tuple[Blocks | None, float | None]:
    if not documents:
        return None, None
    tokens = pack(documents, tokenizer)
    name = "the held-out text (a larger data.held_out, or data.valid, gives more)"
    return Blocks(tokens, length, name), characters_in(documents) / len(tokens)


def cached_tokens(
    dataset: Any, source: HubDataset, tokenizer: Tokenizer, cache_dir: str | None
) -> np.ndarray:
    """The packed tokens of a data set as a memory-mapped file, written once.

    The file is named by the data set's and the tokenizer's fingerprints and appears whole or not
    at all. `cache_dir` defaults to ~/.cache/sedd_fast (or $XDG_CACHE_HOME/sedd_fast).
    """
    root = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    folder = Path(cache_dir or Path(root) / "sedd_fast").expanduser()
    key = f"{dataset._fingerprint} {source.treatment} {tokenizer.fingerprint}"
    path = folder / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_tokens(path, source.texts(dataset), tokenizer)
        path.with_suffix(".json").write_text(json.dumps({"data": source.name}) + "\n")
    return np.load(path, mmap_mode="r")


def _write_tokens(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    raw, whole = (path.with_suffix(f".{os.getpid()}.{end}") for end in ("raw", "npy"))
    with raw.open("wb") as file:
        for batch in _batched(texts, _ROWS):
            pack(batch, tokenizer).tofile(file)
    if raw.stat().st_size == 0:
        raw.unlink()
        raise ValueError("data: the data set has no text; check data.split and data.text_column")
    np.save(whole, np.memmap(raw, dtype=_dtype(tokenizer), mode="r"))
    raw.unlink()
    os.replace(whole, path)


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_range(tokens: np.ndarray, vocab_size: int) -> None:
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        bad = tokens.max() if tokens.max() >= vocab_size else tokens.min()
        raise ValueError(
            f"tokens: id {bad} lies outside the vocabulary 0 .. {vocab_size - 1}; "
            "the text was tokenised with another tokenizer than the model's"
        )


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
