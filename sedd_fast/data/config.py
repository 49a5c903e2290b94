"""The settings of a run's text, and how a field of settings declares the values that it accepts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sedd_fast.names import DataFormat, HeldOutAt


def limits(accepts: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    """Metadata of a field that takes its default and what `accepts`; errors say `expected`."""
    return {"accepts": accepts, "expected": expected}


def fraction(default: float) -> Any:
    """A field that takes numbers from 0 to 1."""
    return field(default=default, metadata=limits(lambda v: 0 <= v <= 1, "a number from 0 to 1"))


def _names_text(value: Any) -> bool:
    names = value if isinstance(value, (list, tuple)) else [value]
    return bool(names) and all(isinstance(name, str) and name for name in names)


_TEXT = limits(
    _names_text, "a name, a path, or a list of these (built-in texts are pydoc and docstrings)"
)


@dataclass(frozen=True)
class DataConfig:
    """Text, tokenizer and split; `sources` and `tokenizers` list the names that are allowed here.

    Args:
        train: "pydoc", "docstrings", a path, a glob, a list of these, or a Hugging Face data set.
        valid: held-out text, likewise; None: cut it from `train`.
        held_out: fraction of `train` that is held out where `valid` is None; 0 holds none out.
        held_out_at: "spread", in up to 32 passages spread over `train`, or "end", its last part
            (runs of versions that had no such setting are resumed with "end").
        tokenizer: "characters", "bytes", "bpe:N", a file, a directory, or a hub name.
        random_offset: shift the block grid by a random amount in each epoch (small corpora).
        config, split, text_column: configuration, split and column of the Hugging Face data set
            `train`.
        valid_config, valid_split: the same for held-out text (default split "validation").
        streaming: read the data set as a stream, without downloading it first.
        shuffle_buffer: rows shuffled at a time in a stream; 0 keeps its order.
        stream_held_out: rows held out from the start of a stream without a valid split.
        cache_dir: where tokenised data sets are kept; None: ~/.cache/sedd_fast.
        format: "text", or "prompt_completion": `train` and `valid` are files of JSON lines with a
            prompt and a completion, or the messages of a chat, in each row (`examples`). A row is
            never cut; `held_out` is a fraction of the rows, and `random_offset` has no effect.
        packing: put several examples into one sequence (attention does not cross from one to
            another); needs format "prompt_completion".
        completion_length: extend shorter completions by end-of-text tokens to so many tokens (as
            far as model.length leaves room), so that the network learns to end a completion within
            a gap of that length. None: the
            longest completion in `train`, with its end-of-text; 1: extend none. Needs format
            "prompt_completion".

    Raises:
        ValueError: `packing` or `completion_length` with format "text", or `streaming` with
            "prompt_completion".
    """

    train: str | list[str] = field(default="pydoc", metadata=_TEXT)
    valid: str | list[str] | None = field(default=None, metadata=_TEXT)
    held_out: float = fraction(0.05)
    held_out_at: HeldOutAt = "spread"
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
    format: DataFormat = "text"
    packing: bool = False
    completion_length: int | None = field(
        default=None, metadata=limits(lambda v: v >= 1, "at least 1")
    )

    def __post_init__(self) -> None:
        if self.format == "prompt_completion":
            if self.streaming:
                raise ValueError(
                    "data.streaming: data.format=prompt_completion reads whole files, got "
                    "data.streaming=true; leave it out"
                )
            return
        for name, usual in (("packing", False), ("completion_length", None)):
            if (value := getattr(self, name)) != usual:
                shown = "true" if value is True else value
                raise ValueError(
                    f"data.{name}: only valid with data.format=prompt_completion, got {shown} with "
                    f"data.format={self.format}; take data.format=prompt_completion, or leave "
                    f"data.{name} out"
                )
