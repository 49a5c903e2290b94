"""The order in which training reads examples, and how they are packed into sequences.

As with blocks (`blocks`), a resumed run reads the batches that the interrupted one would have read,
and each of several processes takes its slice of each batch.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import share
from sedd_fast.data.examples import Examples

_OPEN_ROWS = 64  # that are filled at a time


@dataclass(eq=False)
class ExampleOrder:
    """Endless passes over `examples`, each a permutation drawn from (seed, epoch).

    Args:
        examples: prompts and completions.
        seed: seed of the permutations.
        packing: fill each row with as many examples as fit (:func:`pack_rows`); False: one a row.

    A row has examples of one epoch only; a batch may have rows of two.
    """

    examples: Examples
    seed: int
    packing: bool = False

    def __post_init__(self) -> None:
        self.epoch, self.place = 0, 0  # the place is that of the next row in its epoch
        self._rows = functools.lru_cache(maxsize=1)(self._draw_rows)

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of the examples, and what else the rows depend on besides the seed."""
        if not self.packing:
            return self.examples.fingerprint
        described = f"{self.examples.fingerprint} packed {self.examples.length}"
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

    def has_fingerprint(self, saved: str) -> bool:
        """Whether a run with this fingerprint read the same examples, packed in the same way."""
        return saved == self.fingerprint

    def take(self, count: int, rank: int = 0, world: int = 1) -> Batch:
        """The next `count` rows; this process's share of them: (count / world, L).

        L is the same in all processes, and so are the global numbers, which count all `count` rows.
        """
        rows = [self._next() for _ in range(count)]
        own = self.examples.batch(rows[share(count, rank, world)], self.examples.width(rows))
        loss_tokens, documents, tokens = self.examples.counts(rows)
        return replace(
            own, global_loss_tokens=loss_tokens, global_documents=documents, global_tokens=tokens
        )

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; ValueError for a place beyond its epoch."""
        epoch, place = int(state["epoch"]), int(state["place"])
        rows = len(self._rows(epoch)[1]) - 1
        if not 0 <= place < rows:
            raise ValueError(
                f"data.place: expected one of the {rows} rows of an epoch, got {place}"
            )
        self.epoch, self.place = epoch, place

    def _next(self) -> np.ndarray:
        numbers, starts = self._rows(self.epoch)
        row = numbers[starts[self.place] : starts[self.place + 1]]
        self.place += 1
        if self.place == len(starts) - 1:
            self.epoch, self.place = self.epoch + 1, 0
        return row

    def _draw_rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch (N,), row after row, and where the rows start and end."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
        if not self.packing:
            return order, np.arange(len(order) + 1)
        rows = pack_rows(self.examples.sizes[order].tolist(), self.examples.length)
        return order[np.concatenate(rows)], np.cumsum([0, *map(len, rows)])


def pack_rows(sizes: Sequence[int], length: int, most: int = _OPEN_ROWS) -> list[list[int]]:
    """Documents of these sizes in rows of at most `length` tokens: the numbers of each row.

    First fit: each document in turn goes into the first open row that has room for it, else into a
    new one. A row is closed when no document would fit, and the oldest when `most` are open. No
    document is cut.
    """
    rows: list[list[int]] = []
    shortest = min(sizes)
    opened: list[list[int]] = []
    space: list[int] = []  # left in each open row
    for number, size in enumerate(sizes):
        at = next((i for i, room in enumerate(space) if size <= room), len(space))
        if at == len(space):
            if at == most:
                del opened[0], space[0]
                at -= 1
            rows.append([])
            opened.append(rows[-1])
            space.append(length)
        opened[at].append(number)
        space[at] -= size
        if space[at] < shortest:
            del opened[at], space[at]
    return rows
