"""What a tokenizer is, and the two that need no library: characters and bytes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from sedd_fast.files import checksums
from sedd_fast.files.writing import write_files

END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\ufffd"  # what an unknown character decodes to
MARKER = "sedd_tokenizer.json"  # says which kind of tokenizer a directory holds


class Tokenizer(Protocol):
    """What the package asks of a tokenizer.

    `encode` never adds special tokens; `decode` shows end-of-text as text. `eot` is the id of
    end-of-text, or None where the vocabulary has none. `fingerprint` changes with the vocabulary.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def eot(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def save(self, directory: str | Path) -> None: ...


@dataclass(frozen=True)
class CharTokenizer:
    """One token per character. Ids: the characters in code-point order, end-of-text, unknown.

    Args:
        characters: the vocabulary, each character once.

    `encode`, for prompts, raises an error that names a character outside the vocabulary.
    `encode_corpus`, for held-out text, where one such character must not end a run, maps it to
    `unk`, which decodes to U+FFFD.

    Example:
        >>> tok = CharTokenizer.from_text(["abacus"])
        >>> tok.decode(tok.encode("cab"))
        'cab'
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError(
                f"characters: expected at least one character and none twice, got "
                f"{self.characters!r}; CharTokenizer.from_text(texts) takes them from a text, "
                "which must not be empty"
            )

    @classmethod
    def from_text(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer whose vocabulary is every character in `texts`."""
        return cls("".join(sorted(set(chain.from_iterable(texts)))))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.characters)}

    @property
    def eot(self) -> int:
        return len(self.characters)

    @property
    def unk(self) -> int:
        return len(self.characters) + 1

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 2

    @property
    def name(self) -> str:
        """The kind and the size, for a reader."""
        return f"characters, {self.vocab_size} tokens"

    @property
    def fingerprint(self) -> str:
        return digest("characters", self.characters)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; ValueError that names the characters outside the vocabulary."""
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:8])
            raise ValueError(
                f"text: the vocabulary of {len(self.characters)} characters has no {named}; "
                "the model never saw it: leave it out, or train with data.tokenizer=bytes"
            )
        return [self._ids[c] for c in text]

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, `unk` for a character outside the vocabulary."""
        return [[self._ids.get(c, self.unk) for c in text] for text in texts]

    @cached_property
    def _table(self) -> list[str]:
        return [*self.characters, END_OF_TEXT, REPLACEMENT]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._table[i] for i in checked(ids, self.vocab_size))

    def save(self, directory: str | Path) -> None:
        write_marker(directory, kind="characters", characters=self.characters)


@dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8 as tokens, and 256 for end-of-text.

    >>> ByteTokenizer().encode("é")
    [195, 169]
    """

    vocab_size: int = 257
    eot: int = 256

    @property
    def name(self) -> str:
        """The kind and the size, for a reader."""
        return f"bytes, {self.vocab_size} tokens"

    @property
    def fingerprint(self) -> str:
        return digest("bytes", "")

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        end = END_OF_TEXT.encode()
        pieces = (end if i == self.eot else bytes([i]) for i in checked(ids, self.vocab_size))
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, directory: str | Path) -> None:
        write_marker(directory, kind="bytes")


def utf8(text: str) -> bytes:
    """The text in UTF-8; ValueError that names a surrogate without its pair, which has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {error.start} is {text[error.start]!r}, a surrogate without its "
            "pair, which is no character; leave it out"
        ) from error


def checked(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list; ValueError for one outside 0 .. vocab_size - 1."""
    numbers = [int(i) for i in ids]
    for i in numbers:
        if not 0 <= i < vocab_size:
            raise ValueError(
                f"ids: token {i} lies outside the vocabulary 0 .. {vocab_size - 1}; is it the mask "
                "of an unfinished sample, or another model's tokenizer?"
            )
    return numbers


def write_marker(
    directory: str | Path, also: Callable[[Path], Any] = lambda folder: None, **fields: str
) -> None:
    """Write what load_tokenizer reads, and what `also(folder)` writes, with tokenizer.sha256."""
    text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"

    def fill(folder: Path) -> None:
        (folder / MARKER).write_text(text, encoding="utf-8")
        also(folder)

    write_files(Path(directory), checksums.TOKENIZER, fill)


def digest(kind: str, content: str) -> str:
    return hashlib.sha256(f"{kind}\n{content}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
