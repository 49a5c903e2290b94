"""Wrapping: how a text to evaluate is divided into blocks of tokens.

    sedd       rows joined, end-of-text after each, cut into blocks of L tokens; the rest at the end
               is left out (Lou et al. 2024's code, which leaves out the rest of every 1,000 rows)
    mdlm       the same, cut into L - 2 tokens between two end-of-texts (Sahoo et al. 2024's code)
    separate   every row with its end-of-text in a block of its own, a longer one cut into pieces;
               nothing is left out

Every token of a block counts towards the perplexity, end-of-text included: WikiText has many empty
rows, and for each of them "sedd" and "mdlm" count a token that is easy to predict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import Blocks, evenly_spaced, with_end
from sedd_fast.data.corpus import pack
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.names import WRAPS, Wrap
from sedd_fast.ops._arguments import check_choice


@dataclass(frozen=True)
class Wrapped:
    """A text in blocks.

    Attributes:
        name: the text's name in reports.
        tokens: (T,) integers, the whole stream.
        starts: (N,) index of each block's first token in the stream.
        lengths: (N,) number of tokens that each block takes from the stream.
        chars_per_token: characters of the text over tokens of the blocks.
        wrap: "sedd", "mdlm" or "separate".
        edge: the token put before and after each block ("mdlm").
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    chars_per_token: float
    wrap: Wrap = "sedd"
    edge: int | None = None

    @classmethod
    def of_blocks(cls, blocks: Blocks, chars_per_token: float, name: str) -> "Wrapped":
        """Blocks that training held out."""
        starts = np.arange(len(blocks)) * blocks.length
        lengths = np.full(len(blocks), blocks.length)
        return cls(name, blocks.tokens, starts, lengths, chars_per_token)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def block_length(self) -> int:
        """Tokens of the longest block."""
        return int(self.lengths.max()) + 2 * (self.edge is not None)

    @property
    def left_over(self) -> int:
        """Tokens of the text that are in no block."""
        return len(self.tokens) - int(self.lengths.sum())

    def blocks(self, limit: int | None = None) -> list[Tensor]:
        """All blocks, or `limit` evenly spaced ones, by length: each (n, L) int64."""
        chosen = evenly_spaced(len(self), limit or len(self))
        lengths = self.lengths[chosen]
        return [self._rows(self.starts[chosen[lengths == n]], n) for n in np.unique(lengths)]

    def batches(self, limit: int | None, rows: int) -> Iterator[Batch]:
        """The same blocks, at most `rows` at a time."""
        for group in self.blocks(limit):
            for part in group.split(rows):
                yield Batch(part)

    def _rows(self, starts: np.ndarray, length: int) -> Tensor:
        rows = self.tokens[starts[:, None] + np.arange(length)].astype(np.int64)
        if self.edge is not None:
            rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=self.edge)
        return torch.from_numpy(rows)


def wrap(
    rows: Sequence[str], tokenizer: Tokenizer, length: int, how: Wrap = "sedd", name: str = ""
) -> Wrapped:
    """Tokenise rows of text and divide them into blocks.

    Args:
        rows: documents, sentences or lines.
        tokenizer: the model's.
        length: L, tokens of a block; a shorter text becomes one shorter block.
        how: "sedd", "mdlm" or "separate"; the module's docstring says what each does.
        name: the text's name in reports and errors.

    Raises:
        ValueError: another `how`, no text, a text without a token, a length below 3 for "mdlm", or
            "mdlm" with a tokenizer without end-of-text.

    Example:
        >>> wrapped = wrap(["a b", "c"], tokenizer, length=1024, how="separate")
        >>> sum(block.numel() for block in wrapped.blocks())
    """
    check_choice("wrap", how, WRAPS)
    if how == "mdlm" and (tokenizer.eot is None or length < 3):
        raise ValueError(
            f"wrap 'mdlm' puts an end-of-text at both ends of a block: got length {length} and "
            f"end-of-text {tokenizer.eot}; use 'sedd', or a length of at least 3"
        )
    characters = sum(map(len, rows))
    tokens = pack(rows, tokenizer)
    if not characters:
        raise ValueError(f"{name or 'rows'}: it holds no text; check the file and the split")
    if not len(tokens):
        raise ValueError(
            f"{name or 'rows'}: the tokenizer makes no token of its {characters} characters; check "
            "the text and the tokenizer"
        )
    edge = tokenizer.eot if how == "mdlm" else None
    if how == "separate":
        sizes = [len(ids) for ids in with_end(tokenizer, rows)]
        cuts = [
            (start, min(length, stop - start))
            for size, stop in zip(sizes, accumulate(sizes), strict=True)
            for start in range(stop - size, stop, length)
        ]
        starts, lengths = np.array(cuts, dtype=np.int64).T
    else:
        inner = min(length - 2 * (how == "mdlm"), len(tokens))  # tokens of the text in a block
        starts = np.arange(len(tokens) // inner) * inner
        lengths = np.full(len(starts), inner)
    counted = len(tokens) * (1 + 2 * (edge is not None) / int(lengths.max()))
    return Wrapped(name, tokens, starts, lengths, characters / counted, how, edge)
