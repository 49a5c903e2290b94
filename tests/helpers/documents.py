"""A batch of documents of different lengths: padded, packed, and one by one."""

from typing import NamedTuple

import torch
from torch import Tensor

LENGTHS = (5, 12, 3, 9)


class Rows(NamedTuple):
    """Tokens (B, L), their attention mask, and where document i is: its row and its columns."""

    tokens: Tensor
    mask: Tensor
    places: list[tuple[int, slice]]


def documents(vocab_size: int, seed: int = 0) -> list[Tensor]:
    """Random tokens of every length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (n,), generator=generator) for n in LENGTHS]


def padded(texts: list[Tensor], padding: int = 0, on_the_left: bool = False) -> Rows:
    """One document a row."""
    length = max(map(len, texts)) + 2
    tokens = torch.full((len(texts), length), padding)
    mask = torch.zeros_like(tokens)
    places = []
    for row, text in enumerate(texts):
        start = length - len(text) if on_the_left else 0
        place = slice(start, start + len(text))
        tokens[row, place], mask[row, place] = text, 1
        places.append((row, place))
    return Rows(tokens, mask, places)


def packed(texts: list[Tensor], padding: int = 0) -> Rows:
    """All documents in one row, and the same in the other order in a second one, with padding."""
    length = sum(map(len, texts)) + 3
    tokens = torch.full((2, length), padding)
    mask = torch.zeros_like(tokens)
    places = []
    start = 0
    for number, text in enumerate(texts, start=1):
        place = slice(start, start := start + len(text))
        tokens[0, place], mask[0, place] = text, number
        places.append((0, place))
    start = 3
    for number, text in enumerate(reversed(texts), start=1):
        place = slice(start, start := start + len(text))
        tokens[1, place], mask[1, place] = text, number
    return Rows(tokens, mask, places)


LAYOUTS = {
    "padded": padded,
    "padded on the left": lambda texts: padded(texts, on_the_left=True),
    "padded with other tokens": lambda texts: padded(texts, padding=4),
    "packed": packed,
}
