r"""Templates: text with gaps of so many tokens, as in "The [8] fox [12] dog.".

pieces, length = read_template("The [8] fox.", tokenizer)
tokens, known = lay_out(pieces, tokenizer, length)

``[n]`` is a gap of n tokens. A bracket that is meant is written ``\[`` or ``\]``, a backslash in
front of a bracket ``\\``.
"""

from __future__ import annotations

import re

from sedd_fast.data.texts import Piece
from sedd_fast.data.tokenizers import Tokenizer

LARGEST = 1_000_000  # tokens of a gap
_PARTS = re.compile(
    r"\\(?P<literal>[\\\[\]])|\[(?P<gap>[0-9]+)\]|(?P<bracket>[\[\]])|(?P<text>.)", re.S
)


def read_template(
    template: str, tokenizer: Tokenizer, name: str = "template"
) -> tuple[list[Piece], int]:
    """The pieces of a template at their places, and its length in tokens.

    Every stretch of text is encoded on its own.

    Args:
        template: text and gaps.
        tokenizer: of the model.
        name: what error messages call it.

    Raises:
        ValueError: a bracket that is part of no gap, a gap of 0, no gap at all, or a text that
            cannot be encoded.
    """
    pieces, at = [], 0
    for part in split_template(template, name):
        if isinstance(part, int):
            at += part
            continue
        piece = Piece(part, at, f"{name} {part!r}")
        pieces.append(piece)
        at += len(piece.encode(tokenizer))
    return pieces, at


def split_template(template: str, name: str = "template") -> list[str | int]:
    """Text (str) and gaps (int, in tokens) in their order."""
    parts: list[str | int] = []
    for match in _PARTS.finditer(template):
        if match["bracket"]:
            raise ValueError(
                f"{name}: the {match['bracket']!r} at character {match.start()} is part of no gap "
                "[n], n a number of tokens; a bracket that is meant is written with a backslash, "
                r"\[ or \]"
            )
        if match["gap"]:
            parts.append(_gap(match["gap"], match.start(), name))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += match["literal"] or match["text"]
        else:
            parts.append(match["literal"] or match["text"])
    if not any(isinstance(part, int) for part in parts):
        raise ValueError(f"{name}: there is no gap [n] to fill, as in 'The [8] fox [12] dog.'")
    return parts


def _gap(digits: str, at: int, name: str) -> int:
    if not int(digits):
        raise ValueError(f"{name}: the gap [{digits}] at character {at} is empty; leave it out")
    if int(digits) > LARGEST:
        raise ValueError(
            f"{name}: the gap [{digits}] at character {at} has more than {LARGEST:,} tokens; "
            "no network reads so many"
        )
    return int(digits)
