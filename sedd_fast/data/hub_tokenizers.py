"""Tokenizers of the `tokenizers` and `transformers` libraries, from files or the hub."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sedd_fast.data.basic_tokenizers import END_OF_TEXT, Tokenizer, checked, digest, write_marker
from sedd_fast.data.libraries import explained, import_library

if TYPE_CHECKING:
    import tokenizers

_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the `tokenizers` library (byte-level BPE, unigram, word pieces, ...)."""

    backend: "tokenizers.Tokenizer"

    @classmethod
    def from_file(cls, path: str | Path) -> "HubTokenizer":
        """Read a tokenizer.json; ValueError where it is not one."""
        from tokenizers import Tokenizer as Backend

        what = f"tokenizer: {path} is not valid JSON, or is not a `tokenizers` file"
        with explained(what, "expected a tokenizer.json as Tokenizer.save writes it", Exception):
            return cls(Backend.from_file(str(path)))

    @classmethod
    def from_gpt2_files(cls, directory: str | Path) -> "HubTokenizer":
        """GPT-2's byte-level BPE from `vocab.json` and `merges.txt` in `directory`."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        folder = Path(directory)
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if backend.token_to_id(END_OF_TEXT) is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
        return cls(backend)

    @cached_property
    def vocab_size(self) -> int:
        # The largest id counts, not the number of entries: a vocabulary may have holes.
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eot(self) -> int | None:
        found = (self.backend.token_to_id(name) for name in _END_NAMES)
        return next((i for i in found if i is not None), None)

    @cached_property
    def fingerprint(self) -> str:
        return digest("tokenizers", self.backend.to_str())

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_corpus(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        return self.backend.decode(checked(ids, self.vocab_size), skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        def also(folder: Path) -> None:
            self.backend.save(str(folder / "tokenizer.json"))

        write_marker(directory, also, kind="tokenizers")


@dataclass(frozen=True)
class TransformersTokenizer:
    """Any tokenizer of the `transformers` library, also one without a fast version."""

    backend: Any

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "TransformersTokenizer":
        """Load by hub name or directory; ValueError with the remedy where that fails."""
        transformers = import_library("transformers", "transformers", f"tokenizer: {name!s}")
        with _explained(str(name), OSError, ValueError, KeyError):
            backend = transformers.AutoTokenizer.from_pretrained(str(name))
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        return len(self.backend)

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
        return self.backend(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Iterable[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return self.backend.decode(checked(ids, self.vocab_size), **options)

    def save(self, directory: str | Path) -> None:
        write_marker(directory, self.backend.save_pretrained, kind="transformers")


def load_from_hub(name: str) -> Tokenizer:
    """The tokenizer of a model on the hub: its tokenizer.json, else what transformers makes."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        with _explained(name, HFValidationError):
            path = hf_hub_download(name, "tokenizer.json")
        return HubTokenizer.from_file(path)
    except OSError:  # every error of the hub and of the network is one
        # No tokenizer.json there (or no network): transformers may build it from other files,
        # or from its own cache; its failure is the one to report.
        return TransformersTokenizer.from_pretrained(name)


def _explained(name: str, *kinds: type[Exception]) -> AbstractContextManager[None]:
    what = (
        f"tokenizer: {name!r} is neither characters, bytes, a file or directory here, nor a "
        "tokenizer that the Hugging Face hub gave"
    )
    return explained(what, "check the name, or the network", *kinds)
