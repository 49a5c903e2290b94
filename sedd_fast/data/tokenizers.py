"""Tokenizers: text to token ids 0 .. vocab_size-1 and back.

    characters          one token per character of the training text, plus end-of-text and unknown
    bytes               the 256 bytes of UTF-8, plus end-of-text; any text, no vocabulary to learn
    bpe:N               byte-level BPE of at most N tokens, learned from the training text
    FILE.json           a `tokenizers` file (tokenizer.json)
    DIRECTORY           what `save` wrote; or tokenizer.json; or GPT-2's vocab.json and merges.txt
    NAME                tokenizer.json of a model on the Hugging Face hub, e.g. "gpt2"
    transformers:NAME   whatever `transformers.AutoTokenizer` loads

A tokenizer encodes exactly the text: what a file asks for besides (truncation, padding, special
tokens around a text, BPE dropout) is not applied.

`make_tokenizer` turns such a name into a `Tokenizer`; `save(directory)` writes it beside the
weights, and `load_tokenizer(directory)` reads it back. The mask state of an absorbing graph is not
a token: it has index vocab_size, and only the graph knows of it.
"""

import reprlib
from collections.abc import Iterable
from pathlib import Path

from sedd_fast.data.basic_tokenizers import MARKER, ByteTokenizer, CharTokenizer, Tokenizer
from sedd_fast.data.hub_tokenizers import HubTokenizer, TransformersTokenizer, load_from_hub
from sedd_fast.data.libraries import explained
from sedd_fast.files import checksums, hub
from sedd_fast.files.documents import read_json
from sedd_fast.files.paths import expanded

GPT2_TOKENS = 50_257  # the published checkpoints hold no tokenizer: it is GPT-2's
_BPE_SIZES = range(257, 2**20 + 1)
_FILES = (MARKER, "tokenizer.json", "vocab.json")


def is_learned(spec: str) -> bool:
    """Whether the tokenizer takes its vocabulary from the training text."""
    return spec == "characters" or spec.startswith("bpe:")


def make_tokenizer(spec: str, texts: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer that `spec` names (the table at the top of this module).

    Args:
        spec: "characters", "bytes", "bpe:N", a file, a directory, or a hub name.
        texts: the training text; only "characters" and "bpe:N" read it.

    Raises:
        ValueError: no such tokenizer, or one that is learned from a text and `texts` is None.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if not is_learned(spec):
        return load_tokenizer(spec)
    size = spec.removeprefix("bpe:")
    if spec != "characters" and not (size.isdecimal() and int(size[:10]) in _BPE_SIZES):
        raise ValueError(
            f"tokenizer: expected bpe:N with {_BPE_SIZES[0]} (256 bytes and end-of-text) to "
            f"{_BPE_SIZES[-1]} tokens, such as bpe:2048, got {reprlib.repr(spec)}"
        )
    if texts is None:
        raise ValueError(
            f"tokenizer: {spec!r} takes its vocabulary from the training text and got none; pass "
            "texts=, or use 'bytes' (streamed data, for example)"
        )
    if spec == "characters":
        return CharTokenizer.from_text(texts)
    return HubTokenizer.from_text(texts, int(size))


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Read a tokenizer from a file, a directory (one that `save` wrote, or a model's), or the hub.

    Raises:
        ValueError: nothing of that name, or a file that is not a tokenizer; the message says
            what was looked for.
    """
    name, path = str(source), expanded(source)
    if name == "":
        raise ValueError("tokenizer: got an empty name; give bytes, a path or a hub name")
    if name.startswith("transformers:"):
        return TransformersTokenizer.from_pretrained(name.removeprefix("transformers:"))
    if path.is_dir():
        return _load_directory(path)
    if path.is_file():
        return HubTokenizer.from_file(path)
    if path.suffix == ".json" or not hub.may_be_repository(name):
        raise ValueError(
            f"tokenizer: no file or directory {name!r}{hub.near(path)}{hub.not_asked(name)}; "
            "check the path"
        )
    return load_from_hub(name)


def tokenizer_beside(source: str, vocab_size: int) -> str | None:
    """What `load_tokenizer` reads for the weights of `source`, a directory or a hub name.

    The tokenizer in the directory; "gpt2" where there is none and the network has GPT-2's number
    of tokens; else None.
    """
    if any((Path(source) / file).is_file() for file in _FILES):
        return source
    return "gpt2" if vocab_size == GPT2_TOKENS else None


def _load_directory(path: Path) -> Tokenizer:
    checksums.verify(path, checksums.TOKENIZER, MARKER)
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
    with explained("tokenizer: its directory cannot be read", "check the file", ValueError):
        fields = read_json(path / MARKER)
    kind = fields.get("kind")
    if kind == "characters":
        if not isinstance(characters := fields.get("characters"), str):
            raise ValueError(f"tokenizer: {path / MARKER} holds no characters; copy it again")
        return CharTokenizer(characters)
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "tokenizers":
        return HubTokenizer.from_file(path / "tokenizer.json")
    if kind == "transformers":
        return TransformersTokenizer.from_pretrained(path)
    raise ValueError(
        f"tokenizer: {path / MARKER} has kind {kind!r}, which this version cannot read"
    )
