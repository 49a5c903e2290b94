"""Tokenizers: text to token ids 0 .. vocab_size-1 and back.

    characters          one token per character of the training text, plus end-of-text and unknown
    bytes               the 256 bytes of UTF-8, plus end-of-text; any text, no vocabulary to learn
    FILE.json           a `tokenizers` file (tokenizer.json)
    DIRECTORY           what `save` wrote; or tokenizer.json; or GPT-2's vocab.json and merges.txt
    NAME                tokenizer.json of a model on the Hugging Face hub, e.g. "gpt2"
    transformers:NAME   whatever `transformers.AutoTokenizer` loads

`make_tokenizer` turns such a name into a `Tokenizer`; `save(directory)` writes it beside the
weights, and `load_tokenizer(directory)` reads it back. The mask state of an absorbing graph is no
token: it is index vocab_size, known to the graph only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

END_OF_TEXT = "<|endoftext|>"
REPLACEMENT = "\ufffd"
MARKER = "sedd_tokenizer.json"


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

    `encode` (a prompt that somebody typed) refuses a character that the model never saw, and names
    it; `encode_corpus` (held-out text, where one odd character must not end a run) maps it to
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
                f"{self.characters!r}; build the tokenizer with CharTokenizer.from_text(texts)"
            )

    @classmethod
    def from_text(cls, texts: Iterable[str]) -> CharTokenizer:
        """The tokenizer whose vocabulary is every character in `texts`."""
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        if not seen:
            raise ValueError("texts: expected some text to take the characters from, got none")
        return cls("".join(sorted(seen)))

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

    def decode(self, ids: Iterable[int]) -> str:
        table = [*self.characters, END_OF_TEXT, REPLACEMENT]
        return "".join(table[i] for i in checked(ids, self.vocab_size))

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
    def fingerprint(self) -> str:
        return digest("bytes", "")

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        end = END_OF_TEXT.encode()
        pieces = (end if i == self.eot else bytes([i]) for i in checked(ids, self.vocab_size))
        return b"".join(pieces).decode("utf-8", errors="replace")

    def save(self, directory: str | Path) -> None:
        write_marker(directory, kind="bytes")


def make_tokenizer(spec: str, texts: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer that `spec` names (the table at the top of this module).

    Args:
        spec: "characters", "bytes", a file, a directory, or a hub name.
        texts: the training text; only "characters" reads it.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec == "characters":
        if texts is None:
            raise ValueError(
                "tokenizer: 'characters' takes its vocabulary from the training text and got "
                "none; pass texts=, or use 'bytes' (streamed data, for example)"
            )
        return CharTokenizer.from_text(texts)
    return load_tokenizer(spec)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Read a tokenizer from a file, a directory (one that `save` wrote, or a model's), or the hub.

    Raises:
        ValueError: nothing of that name, or a file that is not a tokenizer; the message says
            what was looked for.
    """
    from sedd_fast.hub_tokenizers import HubTokenizer, TransformersTokenizer, load_from_hub

    name, path = str(source), Path(source).expanduser()
    if name.startswith("transformers:"):
        return TransformersTokenizer.from_pretrained(name.removeprefix("transformers:"))
    if path.is_dir():
        return _load_directory(path)
    if path.is_file():
        return HubTokenizer.from_file(path)
    if path.suffix == ".json" or name.startswith(("/", "./", "../", "~")):
        raise ValueError(f"tokenizer: no file or directory {name!r}; check the path")
    return load_from_hub(name)


def _load_directory(path: Path) -> Tokenizer:
    from sedd_fast.hub_tokenizers import HubTokenizer

    if (path / MARKER).is_file():
        return _load_marked(path)
    if (path / "tokenizer.json").is_file():
        return HubTokenizer.from_file(path / "tokenizer.json")
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return HubTokenizer.from_gpt2_files(path)
    raise ValueError(
        f"tokenizer: {path} holds neither {MARKER}, tokenizer.json, nor vocab.json with "
        "merges.txt; name the directory that holds the tokenizer, or a hub name such as gpt2"
    )


def _load_marked(path: Path) -> Tokenizer:
    from sedd_fast.hub_tokenizers import HubTokenizer, TransformersTokenizer

    fields = parse_json((path / MARKER).read_text(encoding="utf-8"), path / MARKER)
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind == "characters":
        return CharTokenizer(fields["characters"])
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "tokenizers":
        return HubTokenizer.from_file(path / "tokenizer.json")
    if kind == "transformers":
        return TransformersTokenizer.from_pretrained(path)
    raise ValueError(
        f"tokenizer: {path / MARKER} has kind {kind!r}, which this version cannot read"
    )


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


def parse_json(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"tokenizer: {path} is not valid JSON ({error})") from error


def write_marker(directory: str | Path, **fields: str) -> None:
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(fields, ensure_ascii=False, indent=2) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")


def digest(kind: str, content: str) -> str:
    return hashlib.sha256(f"{kind}\n{content}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
