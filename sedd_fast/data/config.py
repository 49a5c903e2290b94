"""The settings of a run's text: sources, tokenizer, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Text, tokenizer and split; `sources` and `tokenizers` list the names that are allowed here.

    Args:
        train: "pydoc", a path, a glob, a list of these, or a Hugging Face data set.
        valid: held-out text, likewise; None: cut it from `train`.
        held_out: fraction cut from the end of `train` where `valid` is None; 0 holds none out.
        tokenizer: "characters", "bytes", a file, a directory, or a hub name.
        random_offset: shift the block grid by a random amount in each epoch (small corpora).
        config, split, text_column: configuration, split and column of the Hugging Face data set
            `train`.
        valid_config, valid_split: the same for held-out text (default split "validation").
        streaming: read the data set as a stream, without downloading it first.
        shuffle_buffer: rows shuffled at a time in a stream; 0 keeps its order.
        stream_held_out: rows held out from the start of a stream without a valid split.
        cache_dir: where tokenised data sets are kept; None: ~/.cache/sedd_fast.
    """

    train: Any = "pydoc"
    valid: Any = None
    held_out: float = 0.05
    tokenizer: str = "characters"
    random_offset: bool = False
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    valid_config: str | None = None
    valid_split: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    stream_held_out: int = 256
    cache_dir: str | None = None
