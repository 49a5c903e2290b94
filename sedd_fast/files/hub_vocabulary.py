"""What the vocabulary of a tokenizer of transformers holds."""

from itertools import islice
from typing import Any


def has_words(backend: Any) -> bool:
    """Whether a tokenizer of transformers has more than its special tokens.

    transformers makes one of these tokens, and perhaps one for a space, where it finds no files.
    """
    special = special_ids(backend)
    words = (i for i in backend.get_vocab().values() if i not in special)
    return len(list(islice(words, 2))) == 2


def special_ids(backend: Any) -> set[int]:
    """The special tokens of a tokenizer of transformers, also those without a name."""
    added = backend.added_tokens_decoder.items()
    return {*backend.all_special_ids, *(i for i, token in added if token.special)}
