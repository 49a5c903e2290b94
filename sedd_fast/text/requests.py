"""Requests: a text to complete, given as a template or as its parts."""

import json
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sedd_fast.data.examples import read_prompt
from sedd_fast.data.prompts import LARGEST, Piece, Placed, as_tensors, place, read_template
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.ops._arguments import whole

_SHOWN = 80  # characters of a wrong value in an error message


@dataclass(frozen=True)
class Request:
    """A text to complete around its known tokens.

    Args:
        placed: its known tokens, from :func:`sedd_fast.data.prompts.place`.
        length: of the text in tokens, L.
        label: further entries of its JSON records, such as its line.
        prompt_length: tokens of its prompt, where all that follows is its completion; else None.
        reference: the text that the completion is compared with.
    """

    placed: Placed
    length: int
    label: dict[str, Any] = field(default_factory=dict)
    prompt_length: int | None = None
    reference: str | None = None

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64, and which of them are known (L,) bool."""
        return as_tensors(self.placed, self.length)


def from_prompt(prompt: str, tokenizer: Tokenizer, length: int, name: str = "prompt") -> Request:
    """The request of a text of `length` tokens that starts with `prompt`, which may be empty.

    Raises:
        TypeError: the prompt is not a text; the message calls it `name`.
        ValueError: it cannot be encoded, or is too long.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"{name} must be a text, got {type(prompt).__name__}")
    pieces = [Piece(prompt, 0, name)] if prompt else []
    length = _length(length)
    return Request(place(pieces, tokenizer, length), length)


def from_row(
    record: dict[str, Any], tokenizer: Tokenizer, length: int, completion_length: int | None = None
) -> Request:
    """The request to complete the prompt of a row: "prompt" or "messages", perhaps with "length".

    Args:
        record: the row; a "completion", or a last message of the assistant, is its reference.
            Other keys are ignored.
        tokenizer: the network's, for messages with a chat template.
        length: most tokens of prompt and completion.
        completion_length: tokens of the gap that is filled, as far as `length` leaves room; None:
            up to `length`. The row's "length" is that of the whole, in place of both.

    Raises:
        ValueError: a value of the wrong type, or a prompt that leaves no room.
    """
    prompt, reference = read_prompt(record, tokenizer)
    if "length" in record:
        length = _length(record["length"])
    elif completion_length is not None:
        length = min(length, len(prompt) + completion_length)
    if len(prompt) >= length:
        raise ValueError(
            f"prompt: its {len(prompt)} tokens leave no room for a completion in a length of "
            f"{length} tokens; shorten it"
        )
    placed = [(0, prompt)] if prompt else []
    return Request(placed, length, prompt_length=len(prompt), reference=reference)


def from_record(
    record: dict[str, Any], tokenizer: Tokenizer, length: int, dashes: str = ""
) -> Request:
    """The request of a line of a file, or of the arguments of `infill`.

    Args:
        record: "template" alone, or any of "prefix", "middle", "suffix" and "length".
        length: of the text in tokens, where the record does not give it.
        dashes: what errors write before the names.

    Raises:
        ValueError: a value of the wrong type, or one that does not fit.
    """
    for key in ("template", "prefix", "suffix"):
        if not isinstance(record.get(key, ""), str):
            raise ValueError(f"{key}: expected a text, got {short(record[key])}")
    if "template" in record:
        name = f"{dashes}template"
        if others := sorted(f"{dashes}{key}" for key in record.keys() - {"template", "id"}):
            raise ValueError(
                f"{name}: it gives all the text and its length; leave out {', '.join(others)}"
            )
        pieces, length = read_template(record["template"], tokenizer, name)
        return Request(place(pieces, tokenizer, length), length)
    if not isinstance(middle := record.get("middle", []), list):
        raise ValueError(f"middle: expected a list of pairs [TEXT, POS], got {short(middle)}")
    pieces = [
        Piece(record.get("prefix", ""), 0, f"{dashes}prefix"),
        *(_placed(pair, dashes) for pair in middle),
        Piece(record.get("suffix", ""), None, f"{dashes}suffix"),
    ]
    length = _length(record.get("length", length))
    return Request(place([piece for piece in pieces if piece.text], tokenizer, length), length)


def _length(value: object) -> int:
    if (number := whole(value)) is None or not 1 <= number <= LARGEST:
        raise ValueError(
            f"length: expected a number of tokens of at least 1 and at most {LARGEST:,}, got "
            f"{short(value)}"
        )
    return number


def short(value: object) -> str:
    """The start of a JSON value, for error messages."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _placed(pair: object, dashes: str) -> Piece:
    if isinstance(pair, list) and len(pair) == 2:
        text, at = pair
        first = whole(at)
        if isinstance(text, str) and first is not None and first >= 0:
            return Piece(text, first, f"{dashes}middle {text!r}")
    raise ValueError(
        f"middle: expected pairs [TEXT, POS], POS a token number from 0, got {short(pair)}"
    )
