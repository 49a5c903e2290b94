"""Tokenizers of the `tokenizers` and `transformers` libraries, from files or the hub."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sedd_fast.data.basic_tokenizers import (
    END_OF_TEXT,
    Tokenizer,
    checked,
    digest,
    utf8,
    write_marker,
)
from sedd_fast.data.files import read_text
from sedd_fast.data.libraries import explained
from sedd_fast.extras import MissingLibraryError, import_library
from sedd_fast.files import hub
from sedd_fast.files.hub_vocabulary import has_words, special_ids

if TYPE_CHECKING:
    import tokenizers

_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the `tokenizers` library (byte-level BPE, unigram, word pieces, ...).

    A copy of `backend` is used, without what a tokenizer.json may bring along for the model it was
    made for: truncation and padding would lose and add tokens of the text, and BPE dropout
    (Provilkov et al. 2020, arXiv 1910.13267) would encode the same text differently each time.
    """

    backend: "tokenizers.Tokenizer"

    def __post_init__(self) -> None:
        if not (self.backend.truncation or self.backend.padding or _dropout(self.backend)):
            return
        backend = type(self.backend).from_str(self.backend.to_str())
        backend.no_truncation()
        backend.no_padding()
        if _dropout(backend):
            backend.model.dropout = None
        object.__setattr__(self, "backend", backend)

    @classmethod
    def from_file(cls, path: str | Path) -> "HubTokenizer":
        """Read a tokenizer.json; ValueError where it is not one."""
        from tokenizers import Tokenizer as Backend

        what = f"tokenizer: {path} is not valid JSON, or is not a `tokenizers` file"
        with explained(what, "expected a tokenizer.json as Tokenizer.save writes it", Exception):
            return cls(Backend.from_str(read_text(path, "tokenizer")))

    @classmethod
    def from_gpt2_files(cls, directory: str | Path) -> "HubTokenizer":
        """GPT-2's byte-level BPE from `vocab.json` and `merges.txt` in `directory`."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocabulary, merges = (Path(directory) / name for name in ("vocab.json", "merges.txt"))
        what = f"tokenizer: {vocabulary} and {merges} are not GPT-2's files"
        with explained(what, "copy them again, in UTF-8 without a byte order mark", Exception):
            model = models.BPE.from_file(str(vocabulary), str(merges))
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if backend.token_to_id(END_OF_TEXT) is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
        return cls(backend)

    @classmethod
    def from_text(cls, texts: Iterable[str], size: int) -> "HubTokenizer":
        """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) learned from `texts`.

        Args:
            texts: the training text.
            size: largest number of tokens, with the 256 bytes and end-of-text; a short text gives
                fewer.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @property
    def name(self) -> str:
        """The kind of its model, such as WordLevel, and its size."""
        return f"{type(self.backend.model).__name__} of {self.vocab_size} tokens"

    @cached_property
    def vocab_size(self) -> int:
        return _size(self.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Tokens <0x00> .. <0xFF>, of which a decoder turns whole runs into characters."""
        return _byte_ids(self.backend.get_vocab(with_added_tokens=True))

    @cached_property
    def eot(self) -> int | None:
        found = (self.backend.token_to_id(name) for name in _END_NAMES)
        return next((i for i in found if i is not None), None)

    @cached_property
    def fingerprint(self) -> str:
        return digest("tokenizers", self.backend.to_str())

    def encode(self, text: str) -> list[int]:
        with _failures_named(self.name, [text]):
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        with _failures_named(self.name, texts):
            encoded = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        known = checked(ids, self.vocab_size)
        with _failures_named(self.name):
            return self.backend.decode(known, skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        def also(folder: Path) -> None:
            self.backend.save(str(folder / "tokenizer.json"))

        write_marker(directory, also, kind="tokenizers")


@dataclass(frozen=True)
class TransformersTokenizer:
    """Any tokenizer of the `transformers` library, also one without a fast version.

    As in :class:`HubTokenizer`, BPE dropout is not applied: a copy of `backend` is used without it.
    """

    backend: Any

    def __post_init__(self) -> None:
        if _dropout(getattr(self.backend, "backend_tokenizer", None)):
            backend = copy.deepcopy(self.backend)
            backend.backend_tokenizer.model.dropout = None
            object.__setattr__(self, "backend", backend)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, trust_remote_code: bool = False
    ) -> "TransformersTokenizer":
        """Load by hub name or directory; ValueError with the remedy where that fails.

        Args:
            name: a directory or a hub name.
            trust_remote_code: run the Python code that comes with the tokenizer.

        Raises:
            ValueError: there is none, or one without words, as transformers makes of no files.
        """
        transformers = import_library("transformers", "transformers", f"tokenizer: {name!s}")
        with _explained(str(name), OSError, ValueError, KeyError, TypeError), hub.access(name):
            backend = transformers.AutoTokenizer.from_pretrained(
                str(name), trust_remote_code=trust_remote_code
            )
        if not has_words(backend):
            raise ValueError(
                f"tokenizer: {name} holds no vocabulary, only special tokens; copy the "
                "tokenizer's files there, or name another tokenizer"
            )
        return cls(backend)

    @property
    def name(self) -> str:
        return str(getattr(self.backend, "name_or_path", "")) or type(self.backend).__name__

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        added = {str(token): i for i, token in self.backend.added_tokens_decoder.items()}
        return self.backend.get_vocab() | added

    @cached_property
    def vocab_size(self) -> int:
        return _size(self._vocabulary)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """As those of :class:`HubTokenizer`."""
        return _byte_ids(self._vocabulary)

    @cached_property
    def _ids(self) -> frozenset[int]:
        return frozenset(self._vocabulary.values())

    @property
    def eot(self) -> int | None:
        return self.backend.eos_token_id

    @cached_property
    def fingerprint(self) -> str:
        vocabulary = json.dumps(self.backend.get_vocab(), sort_keys=True)
        return digest("transformers", type(self.backend).__name__ + vocabulary)

    def encode(self, text: str) -> list[int]:
        return self.encode_corpus([text])[0]

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        # verbose=False: a whole book is longer than the tokenizer's own model takes, on purpose.
        options = {"add_special_tokens": False, "truncation": False, "padding": False}
        with _failures_named(self.name, texts):
            found = self.backend(list(texts), **options, verbose=False)["input_ids"]
            mask = getattr(self.backend, "mask_token_id", None)
            return [
                ids if mask is None or mask not in ids else self._with_mask_as_text(text, ids, mask)
                for text, ids in zip(texts, found, strict=True)
            ]

    def _with_mask_as_text(self, text: str, ids: list[int], mask: int) -> list[int]:
        """The tokens of a text with the mask's name, which is encoded as other words are.

        Other special tokens remain, as in a chat template. If the name is a word of the vocabulary,
        the tokens are left as they are.
        """
        options = {"add_special_tokens": False, "truncation": False, "padding": False}
        if set(ids) & special_ids(self.backend) == {mask}:
            return self.backend(text, **options, split_special_tokens=True)["input_ids"]
        name = str(self.backend.mask_token)
        own = self.backend(name, **options, split_special_tokens=True)["input_ids"]
        return [token for i in ids for token in (own if i == mask else [i])]

    def decode(self, ids: Iterable[int]) -> str:
        # A slow tokenizer may fail at an id between those of its tokens.
        known = [i for i in checked(ids, self.vocab_size) if i in self._ids]
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        with _failures_named(self.name):
            return self.backend.decode(known, **options)

    def save(self, directory: str | Path) -> None:
        write_marker(directory, self.backend.save_pretrained, kind="transformers")


def _dropout(backend: Any) -> float | None:
    """The rate of BPE dropout of a tokenizer of the `tokenizers` library."""
    return getattr(getattr(backend, "model", None), "dropout", None)


def _size(vocabulary: Mapping[str, int]) -> int:
    """The largest id and one, not the number of tokens: a vocabulary may have holes."""
    return max(vocabulary.values(), default=-1) + 1


def _byte_ids(vocabulary: Mapping[str, int]) -> frozenset[int]:
    return frozenset(i for token, i in vocabulary.items() if _BYTE.fullmatch(token))


@contextmanager
def _failures_named(name: str, texts: Sequence[str] = ()) -> Iterator[None]:
    """An error of a library as a ValueError with the tokenizer's name, or with a wrong text."""
    what = f"tokenizer: {name} failed"
    try:
        yield
    except Exception as error:
        for text in texts:
            utf8(text)
        if isinstance(error, (MemoryError, TypeError)):
            raise
        with explained(what, "its files may not fit together; take another", Exception):
            raise


def load_from_hub(name: str) -> Tokenizer:
    """The tokenizer of a model on the hub: its tokenizer.json, else what transformers makes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    with _explained(name, HFValidationError, ConnectionError), hub.access(name):
        try:
            path = hf_hub_download(name, "tokenizer.json")
        except OSError:  # every error of the hub and of the network is one
            if hub.unreachable() and find_spec("transformers") is None:
                raise
            # No tokenizer.json there (or no network): transformers may build it from other files,
            # or from its own cache; its failure is the one to report.
            with _explained(name, MissingLibraryError):
                return TransformersTokenizer.from_pretrained(name)
    return HubTokenizer.from_file(path)


def _explained(name: str, *kinds: type[Exception]) -> AbstractContextManager[None]:
    close = hub.near(name, ("characters", "bytes", "gpt2"))
    what = (
        f"tokenizer: {name!r}{close} is neither characters, bytes, a file or directory here, nor a "
        "tokenizer that the Hugging Face hub gave"
    )
    return explained(what, "check the name, or the network", *kinds)
