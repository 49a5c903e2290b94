"""Blocks of tokens, and the order in which training reads them.

Both readers give the same blocks for the same seed and position, so that a resumed run reads the
batches that the interrupted one would have read. Each of several processes takes its slice of each
batch.

    BlockOrder    blocks in memory or memory-mapped, each epoch in an order drawn from (seed, epoch)
    StreamOrder   a streamed data set, tokenised and packed while it is read
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sedd_fast.data.batches import Batch
from sedd_fast.data.sources import HubDataset
from sedd_fast.data.tokenizers import Tokenizer

_HASHED = 2**22  # tokens hashed at a time


@dataclass(frozen=True)
class Blocks:
    """A token stream cut into blocks.

    Args:
        tokens: (N,) integers, in memory or memory-mapped.
        length: tokens per block, L.
        name: the text's name in error messages.
    """

    tokens: np.ndarray
    length: int
    name: str = "the text"

    def __post_init__(self) -> None:
        if len(self.tokens) < self.length:
            raise ValueError(
                f"data: {self.name} has {len(self.tokens)} tokens, fewer than one block of "
                f"{self.length}; give more text or set model.length to at most {len(self.tokens)}"
            )

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def rows(self, indices: Sequence[int] | np.ndarray, offset: int = 0) -> torch.Tensor:
        """Blocks by number, the grid shifted right by `offset` tokens: (n, L) int64."""
        starts = np.asarray(indices, dtype=np.int64) * self.length + offset
        picked = self.tokens[starts[:, None] + np.arange(self.length)]  # (n, L)
        return torch.from_numpy(picked.astype(np.int64))

    def spaced(self, most: int) -> Batch:
        """Evenly spaced blocks, at most `most` of them."""
        return Batch(self.rows(evenly_spaced(len(self), most)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when any token does."""
        return fingerprint_of(self.tokens)

    def has_fingerprint(self, saved: str) -> bool:
        """Whether `saved` is the fingerprint, or one of 16 digits as older runs have it."""
        return saved == (self._fingerprint_of_ends if len(saved) == 16 else self.fingerprint)

    @property
    def _fingerprint_of_ends(self) -> str:
        ends = np.concatenate([self.tokens[:1_000_000], self.tokens[-1_000_000:]])
        content = ends.astype("<i8").tobytes()
        return hashlib.sha256(f"{len(self.tokens)}".encode() + content).hexdigest()[:16]


def fingerprint_of(tokens: np.ndarray) -> str:
    """A hash of all tokens (n,)."""
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(f"{tokens.dtype.name} {len(tokens)}".encode())
    for start in range(0, len(tokens), _HASHED):
        part = tokens[start : start + _HASHED]
        part = part.astype(part.dtype.newbyteorder("<"), order="C", copy=False)
        hasher.update(part.data)
    return hasher.hexdigest()


class BlockOrder:
    """Endless passes over `blocks`, each a permutation drawn from (seed, epoch).

    Args:
        blocks: the text.
        seed: seed of the permutations.
        random_offset: shift the block grid by a random 0 .. L-1 tokens in each epoch, so that the
            words of a small corpus occur at every position in a block.

    Example:
        >>> order = BlockOrder(Blocks(np.arange(12), length=3), seed=0)
        >>> order.take(4).tokens.shape
        torch.Size([4, 3])
    """

    def __init__(self, blocks: Blocks, seed: int, random_offset: bool = False) -> None:
        self.blocks, self.seed, self.random_offset = blocks, seed, random_offset
        self.position = 0  # blocks taken since the start, over all processes
        self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)

    @property
    def fingerprint(self) -> str:
        return self.blocks.fingerprint

    def has_fingerprint(self, saved: str) -> bool:
        """Whether a run with this fingerprint read the same text."""
        return self.blocks.has_fingerprint(saved)

    @property
    def per_epoch(self) -> int:
        slack = self.blocks.length - 1 if self.random_offset else 0
        return max(1, (len(self.blocks.tokens) - slack) // self.blocks.length)

    def take(self, count: int, rank: int = 0, world: int = 1) -> Batch:
        """The next `count` blocks; this process's share of them: (count / world, L)."""
        positions = range(self.position, self.position + count)[share(count, rank, world)]
        self.position += count
        own = torch.cat([self._row(position) for position in positions])
        return Batch.of_blocks(own, count)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])

    def _row(self, position: int) -> torch.Tensor:
        epoch, place = divmod(position, self.per_epoch)
        permutation, offset = self._epoch(epoch)
        return self.blocks.rows(permutation[place : place + 1], offset)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        """The order of the blocks, and the shift of their grid."""
        generator = np.random.default_rng([self.seed, epoch])
        permutation = generator.permutation(self.per_epoch)
        slack = len(self.blocks.tokens) - self.per_epoch * self.blocks.length
        limit = min(slack, self.blocks.length - 1) if self.random_offset else 0
        return permutation, int(generator.integers(0, limit + 1))


@dataclass(eq=False)
class StreamOrder:
    """Blocks of a streamed data set, shuffled through a buffer and packed while it is read.

    Every process reads the whole stream and keeps its share of the blocks, so a run may be resumed
    with another number of processes. Resuming skips to the row it had reached, which reads (and,
    from the hub, downloads) the rows before it. `datasets` could restore its own position
    (`IterableDataset.state_dict`), but not the contents of the shuffle buffer: the rows would
    differ from those of an uninterrupted run.

    Rows without a text (null) are passed over, and counted as rows.

    Args:
        source: the data set, `streaming=True`.
        tokenizer: encodes the rows.
        length: tokens per block.
        seed: seed of the shuffle.
        buffer: rows in the shuffle buffer; 0 keeps the order of the stream.
        skip: rows at the start that belong to the held-out text.
    """

    source: HubDataset
    tokenizer: Tokenizer
    length: int
    seed: int
    buffer: int = 10_000
    skip: int = 0

    def __post_init__(self) -> None:
        self.epoch, self.documents = 0, 0
        self._pending: list[int] = []
        self._documents = self._read()

    @property
    def fingerprint(self) -> str:
        described = f"{self.source} {self.skip} {self.buffer} {self.tokenizer.fingerprint}"
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def has_fingerprint(self, saved: str) -> bool:
        """Whether a run with this fingerprint read the same stream."""
        return saved == self.fingerprint

    def take(self, count: int, rank: int = 0, world: int = 1) -> Batch:
        """The next `count` blocks; this process's share of them: (count / world, L)."""
        while len(self._pending) < count * self.length:
            self._pending += next(self._documents)
        used = count * self.length
        blocks = torch.tensor(self._pending[:used]).view(count, self.length)
        del self._pending[:used]
        return Batch.of_blocks(blocks[share(count, rank, world)], count)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "documents": self.documents, "pending": list(self._pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.documents = int(state["epoch"]), int(state["documents"])
        self._pending, self._documents = list(state["pending"]), self._read()

    def _read(self) -> Iterator[list[int]]:
        """The tokens of each document from here on, pass after pass."""
        while True:
            rows = self.source.load().skip(self.skip)
            if self.buffer:
                seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
                rows = rows.shuffle(seed=seed, buffer_size=self.buffer)
            found = self.documents > 0
            for row in rows.skip(self.documents):
                texts = list(self.source.texts([row], [self.documents]))
                self.documents += 1
                for ids in with_end(self.tokenizer, texts):
                    found |= bool(ids)
                    yield ids
            if not found:
                raise ValueError(f"data: the stream {self.source.name!r} has no text to train on")
            self.epoch, self.documents = self.epoch + 1, 0


def share(count: int, rank: int, world: int) -> slice:
    """One process's share of the `count` rows of a batch."""
    return slice(rank * count // world, (rank + 1) * count // world)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. count - 1, with the first and the last of them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def with_end(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, end-of-text after them where the vocabulary has one."""
    end = [] if tokenizer.eot is None else [tokenizer.eot]
    return [list(ids) + end for ids in tokenizer.encode_corpus(texts)]
