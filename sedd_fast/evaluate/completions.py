"""Completions to evaluate: the likelihood of each given its prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import evenly_spaced
from sedd_fast.data.examples import Examples


@dataclass(frozen=True)
class Completions:
    """Prompts and completions, as :class:`sedd_fast.evaluate.wrapping.Wrapped` is a text in blocks.

    The bound is that of a completion with its end-of-text and the end-of-text tokens that extend
    it, as in training: all of them are noised, and counted.

    Attributes:
        examples: prompts and completions.
        name: their name in reports.
    """

    examples: Examples
    name: str

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def block_length(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return int(self.examples.sizes.max())

    @property
    def chars_per_token(self) -> float:
        """Characters of the completions over the tokens that are counted."""
        return self.examples.chars_per_token

    @property
    def left_over(self) -> int:
        """Tokens that are in no block: none."""
        return 0

    def batches(self, limit: int | None, rows: int) -> Iterator[Batch]:
        """All examples, or `limit` evenly spaced ones, `rows` at a time, the shortest first."""
        chosen = evenly_spaced(len(self), limit or len(self))
        chosen = chosen[np.argsort(self.examples.sizes[chosen], kind="stable")].tolist()
        for start in range(0, len(chosen), rows):
            yield self.examples.batch([[number] for number in chosen[start : start + rows]])
