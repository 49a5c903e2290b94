r"""Text around the samplers: given text becomes tokens to keep, sampled tokens become text.

    tokens, known = lay_out([Piece("The "), Piece(" exists.", at=None)], tokenizer, length=64)
    filled = infill(model, graph, noise, tokens[None], known[None])
    text = decode_samples(filled, known, tokenizer, graph.mask_index)[0].text

Given text may also be written as a template, text with gaps of so many tokens:

    pieces, length = read_template("The [8] fox [12] dog.", tokenizer)
    tokens, known = lay_out(pieces, tokenizer, length)

``[n]`` is a gap of n tokens. A literal bracket is written ``\[`` or ``\]``, a literal backslash in
front of a bracket ``\\``.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from sedd_fast.data.basic_tokenizers import REPLACEMENT, Tokenizer

MASK = "[MASK]"
LARGEST = 1_000_000  # tokens of a gap
_CONTEXT = 16  # tokens before a place that are decoded again to find its character
_ESCAPED = re.compile(r"\\([\\\[\]])")
_PARTS = re.compile(rf"(?P<text>({_ESCAPED.pattern}|[^\[\]])+)|\[(?P<gap>[0-9]+)\]|(?P<bracket>.)")

#: Given tokens, each stretch with its first position.
Placed = list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Piece:
    """Given text and its place in the sequence.

    Args:
        text: the text.
        at: position of its first token, from 0; None: its last token is the last of the sequence.
        name: its name in error messages.
    """

    text: str
    at: int | None = 0
    name: str = "the piece"

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Its tokens; ValueError, with its name, for text that the tokenizer cannot encode."""
        try:
            return tokenizer.encode(self.text)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Sample:
    """A sampled sequence as text.

    Attributes:
        text: decoded, cut at end-of-text.
        tokens: the tokens of `text`.
        given: ranges [start, stop) of `tokens` that were given.
        marks: the same ranges in characters of `text`.
        network_calls: how often the sequence went through the network; 0 where it is not known.
    """

    text: str
    tokens: list[int]
    given: list[tuple[int, int]]
    marks: list[tuple[int, int]]
    network_calls: int = 0


def lay_out(pieces: Sequence[Piece], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """A sequence with the pieces in place: tokens (L,) int64; known (L,) bool, True at the pieces.

    Raises:
        ValueError: a piece does not fit, overlaps another, or cannot be encoded; more than a
            million tokens.
    """
    return as_tensors(place(pieces, tokenizer, length), length)


def as_tensors(placed: Placed, length: int) -> tuple[Tensor, Tensor]:
    """What `place` returned as the two tensors of :func:`lay_out`."""
    tokens = torch.zeros(length, dtype=torch.int64)
    known = torch.zeros(length, dtype=torch.bool)
    for start, ids in placed:
        tokens[start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        known[start : start + len(ids)] = True
    return tokens, known


def place(pieces: Sequence[Piece], tokenizer: Tokenizer, length: int) -> Placed:
    """The first position and the tokens of each piece; errors as those of :func:`lay_out`."""
    if length > LARGEST:
        raise ValueError(f"length: more than {LARGEST:,} tokens; shorten the text or its gaps")
    placed, taken = [], bytearray(length)
    for number, piece in enumerate(pieces):
        ids = piece.encode(tokenizer)
        start = length - len(ids) if piece.at is None else piece.at
        stop = start + len(ids)
        if start < 0 or stop > length:
            where = "at the end" if piece.at is None else f"from token {start}"
            raise ValueError(
                f"{piece.name}: {len(ids)} tokens {where} do not fit into a length of {length}; "
                "shorten or move it, or raise the length"
            )
        if any(taken[start:stop]):
            others = ", ".join(other.name for other in pieces[:number])
            raise ValueError(
                f"{piece.name}: tokens {start} to {stop - 1} overlap what {others} gave; move it, "
                "or raise the length"
            )
        taken[start:stop] = b"\1" * len(ids)
        placed.append((start, ids))
    return placed


def decode_samples(
    tokens: Tensor,
    known: Tensor,
    tokenizer: Tokenizer,
    mask_index: int | None = None,
    keep_after_eot: bool = False,
) -> list[Sample]:
    """Sampled sequences as text.

    Args:
        tokens: (B, L) int64, what `sample` or `infill` returned.
        known: (L,) bool, True where a token was given; given text is never cut off.
        tokenizer: the model's.
        mask_index: the graph's; a mask that an unfinished sample still holds is written [MASK].
        keep_after_eot: do not cut at the first end-of-text after the last given token.
    """
    edges = np.flatnonzero(np.diff([False, *known.tolist(), False])).tolist()
    given = list(zip(edges[::2], edges[1::2], strict=True))
    earliest = edges[-1] if edges else 0
    samples = []
    for ids in tokens.tolist():
        if not keep_after_eot and tokenizer.eot in ids[earliest:]:
            del ids[ids.index(tokenizer.eot, earliest) :]
        places = _prefix_lengths(ids, edges, tokenizer, mask_index)
        marks = list(zip(places[::2], places[1::2], strict=True))
        samples.append(Sample(decode(ids, tokenizer, mask_index), ids, given, marks))
    return samples


def _prefix_lengths(
    ids: list[int], ends: Sequence[int], tokenizer: Tokenizer, mask_index: int | None
) -> list[int]:
    """len(decode(ids[:end])) for each of the ascending ends, in linear time.

    A decoder's output depends on few tokens on either side: characters of several tokens, a space
    left out at the start or the end, repeated tokens. Therefore two prefixes that end at m < e
    differ in length as decode(ids[s:m]) and decode(ids[s:e]) do, if enough tokens and characters
    lie between s and m, and s does not split a run of byte tokens, which is decoded as a whole.
    """
    byte_ids: frozenset[int] = getattr(tokenizer, "byte_ids", frozenset())

    def added(before: int, end: int) -> int:
        context = _CONTEXT
        while True:
            start = max(0, before - context)
            while start and ids[start] in byte_ids and ids[start - 1] in byte_ids:
                start -= 1
            known = len(decode(ids[start:before], tokenizer, mask_index))
            if start == 0 or 2 * known >= _CONTEXT:
                return len(decode(ids[start:end], tokenizer, mask_index)) - known
            context *= 2

    lengths, before, length = [], 0, 0
    for end in ends:
        length, before = length + added(before, end), end
        lengths.append(length)
    return lengths


def decode(ids: Sequence[int], tokenizer: Tokenizer, mask_index: int | None = None) -> str:
    """The text of tokens that may hold masks.

    A network may have more tokens than its tokenizer: each of those is U+FFFD.
    """

    def special(token: int) -> str:
        if token == mask_index:
            return MASK
        return REPLACEMENT if token >= tokenizer.vocab_size else ""

    runs = groupby(ids, key=special)
    return "".join(text * len(list(run)) if text else tokenizer.decode(run) for text, run in runs)


def read_template(
    template: str, tokenizer: Tokenizer, name: str = "template"
) -> tuple[list[Piece], int]:
    """The pieces of a template at their places, and its length in tokens.

    Every stretch of text is encoded on its own. Where the tokenizer puts a space at the start of
    the word after it, as GPT-2's does, the space before a gap is left to the gap: a space by itself
    is followed by no word in training.

    Args:
        template: text and gaps.
        tokenizer: the model's.
        name: its name in error messages.

    Raises:
        ValueError: a bracket outside a gap, a gap of 0 tokens, no gap at all, or text that cannot
            be encoded.
    """
    pieces, at = [], 0
    parts = split_template(template, name)
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        if isinstance(part, int):
            at += part
            continue
        if isinstance(after, int) and re.search(r"\S $", part) and _joins_spaces(tokenizer):
            part = part[:-1]
        piece = Piece(part, at, f"{name} {part!r}")
        pieces.append(piece)
        at += len(piece.encode(tokenizer))
    return pieces, at


def _joins_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a space and the word after it are one token."""
    with suppress(ValueError):  # a vocabulary without these characters
        return len(tokenizer.encode(" a")) == 1
    return False


def split_template(template: str, name: str = "template") -> list[str | int]:
    """The parts of a template in order: text (str) and gaps (int, in tokens)."""
    parts: list[str | int] = []
    for match in _PARTS.finditer(template):
        if match["bracket"]:
            raise ValueError(
                f"{name}: the {match['bracket']!r} at character {match.start()} is part of no gap "
                "[n], n a number of tokens; write a literal bracket with a backslash, "
                r"\[ or \]"
            )
        if match["gap"]:
            digits = match["gap"].lstrip("0")
            if not digits or len(digits) > len(str(LARGEST)) or int(digits) > LARGEST:
                raise ValueError(
                    f"{name}: the gap {match[0]} at character {match.start()} is empty or has more "
                    f"than {LARGEST:,} tokens; leave an empty gap out"
                )
            parts.append(int(digits))
        if match["text"]:
            parts.append(_ESCAPED.sub(r"\1", match["text"]))
    if not any(isinstance(part, int) for part in parts):
        raise ValueError(f"{name}: there is no gap [n] to fill, as in 'The [8] fox [12] dog.'")
    return parts
