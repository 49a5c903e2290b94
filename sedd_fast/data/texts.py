"""Text around the samplers: given pieces become tokens to keep, drawn tokens become text.

tokens, known = lay_out([Piece("The "), Piece(" exists.", at=None)], tokenizer, length=64)
filled = infill(model, graph, noise, tokens[None], known[None])
text = read_texts(filled, known, tokenizer, graph.mask_index)[0].text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.data.tokenizers import Tokenizer

MASK = "[MASK]"


@dataclass(frozen=True)
class Piece:
    """Text given at a place.

    Args:
        text: what stands there.
        at: number of its first token, from 0; None: it ends the sequence.
        name: what error messages call it.
    """

    text: str
    at: int | None = 0
    name: str = "the piece"

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Its tokens; a ValueError, with its name, for what the tokenizer does not know."""
        try:
            return tokenizer.encode(self.text)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


@dataclass(frozen=True)
class Drawn:
    """A drawn text.

    Attributes:
        text: decoded, cut at end-of-text.
        tokens: those of `text`.
        given: ranges [start, stop) of `tokens` that were given.
        marks: the same as ranges of characters of `text`.
    """

    text: str
    tokens: list[int]
    given: list[tuple[int, int]]
    marks: list[tuple[int, int]]


def lay_out(pieces: Sequence[Piece], tokenizer: Tokenizer, length: int) -> tuple[Tensor, Tensor]:
    """A sequence with the pieces in place: tokens (L,) int64, known (L,) bool.

    Raises:
        ValueError: a piece does not fit, overlaps another, or cannot be encoded.
    """
    tokens = torch.zeros(length, dtype=torch.int64)
    known = torch.zeros(length, dtype=torch.bool)
    for number, piece in enumerate(pieces):
        ids = torch.tensor(piece.encode(tokenizer), dtype=torch.int64)
        start = length - len(ids) if piece.at is None else piece.at
        stop = start + len(ids)
        if start < 0 or stop > length:
            where = "at the end" if piece.at is None else f"from token {start}"
            raise ValueError(
                f"{piece.name}: {len(ids)} tokens {where} do not fit into a length of {length}; "
                "shorten or move it, or raise the length"
            )
        if bool(known[start:stop].any()):
            others = ", ".join(other.name for other in pieces[:number])
            raise ValueError(
                f"{piece.name}: tokens {start} to {stop - 1} overlap what {others} gave; move it, "
                "or raise the length"
            )
        tokens[start:stop], known[start:stop] = ids, True
    return tokens, known


def read_texts(
    tokens: Tensor,
    known: Tensor,
    tokenizer: Tokenizer,
    mask_index: int | None = None,
    keep_after_eot: bool = False,
) -> list[Drawn]:
    """Drawn sequences as text.

    Args:
        tokens: (B, L) int64, what `sample` or `infill` returned.
        known: (L,) bool, what was given; its text is never cut off.
        tokenizer: of the model.
        mask_index: the graph's; a mask that an unfinished sample still holds is written [MASK].
        keep_after_eot: do not cut at the first end-of-text after everything given.
    """
    spans = _runs(known.tolist())
    earliest = spans[-1][1] if spans else 0
    drawn = []
    for row in tokens.tolist():
        end = len(row)
        if not keep_after_eot and tokenizer.eot in row[earliest:]:
            end = row.index(tokenizer.eot, earliest)
        ids = row[:end]
        cuts = {i: len(decode(ids[:i], tokenizer, mask_index)) for span in spans for i in span}
        marks = [(cuts[start], cuts[stop]) for start, stop in spans]
        drawn.append(Drawn(decode(ids, tokenizer, mask_index), ids, spans, marks))
    return drawn


def decode(ids: Sequence[int], tokenizer: Tokenizer, mask_index: int | None = None) -> str:
    """The text of tokens that may hold masks."""
    pieces, start = [], 0
    for i, token in enumerate(ids):
        if token == mask_index:
            pieces += [tokenizer.decode(ids[start:i]), MASK]
            start = i + 1
    return "".join([*pieces, tokenizer.decode(ids[start:])])


def _runs(known: Sequence[bool]) -> list[tuple[int, int]]:
    """Ranges [start, stop) of True."""
    padded = [False, *known, False]
    edges = [i for i in range(len(known) + 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))
