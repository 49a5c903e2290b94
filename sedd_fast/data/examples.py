"""Prompts with their completions as tokens, and as padded batches.

    rows = read_rows("sums.jsonl")  # the forms of a row: example_rows
    examples = Examples(encode_rows(rows, tokenizer), length=128, eot=tokenizer.eot)
    batch = examples.batch([[0], [1, 2]])  # two sequences, with one and two examples

Messages are written by the tokenizer's chat template; the completion is what it writes for the last
message, the assistant's. The tokens of a completion are noised and carry loss, those of its prompt
are given.
"""

import functools
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sedd_fast.data.basic_tokenizers import Tokenizer, checked
from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import evenly_spaced, fingerprint_of
from sedd_fast.data.chat_templates import render
from sedd_fast.data.example_rows import Row, named, read_rows, used_fields

_ROWS = 1000  # encoded at a time
_MULTIPLE = 8  # of which the padded length of a batch is one


@dataclass(frozen=True)
class Example:
    """A prompt and its completion as tokens.

    Attributes:
        prompt: its tokens, perhaps none.
        completion: its tokens, end-of-text as the last where the vocabulary has one.
        characters: the number of characters of the completion's text, without end-of-text.
        where: "FILE, line N".
    """

    prompt: list[int]
    completion: list[int]
    characters: int
    where: str


def read_examples(source: str | Sequence[str], tokenizer: Tokenizer) -> list[Example]:
    """The examples of files of JSON lines (`example_rows` has the forms of a row).

    Args:
        source: a path, a glob, or a list of these.
        tokenizer: for rows of messages a `TransformersTokenizer` with a chat template.

    Raises:
        ValueError: no such file, or one without rows; and with file and line: no JSON, a row of
            neither form or of both, a value of a wrong type, an empty completion, characters that
            the tokenizer lacks, no chat template, or one that fails.
    """
    examples = []
    for row in read_rows(source):
        with named(row.where):
            texts = _texts(row.fields, tokenizer)
            examples.append(_example(row, texts, [*map(tokenizer.encode, texts)], tokenizer))
    return examples


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Iterator[Example]:
    """The examples of rows; characters that the tokenizer lacks are its unknown token.

    Raises:
        ValueError: as :func:`read_examples`, with file and line.
    """
    for start in range(0, len(rows), _ROWS):
        part, texts = rows[start : start + _ROWS], []
        for row in part:
            with named(row.where):
                texts.append(_texts(row.fields, tokenizer))
        try:
            ids = tokenizer.encode_corpus([text for pair in texts for text in pair])
        except ValueError:
            for row, pair in zip(part, texts, strict=True):
                with named(row.where):
                    tokenizer.encode_corpus(pair)
            raise
        for number, (row, pair) in enumerate(zip(part, texts, strict=True)):
            with named(row.where):
                example = _example(row, pair, ids[2 * number : 2 * number + 2], tokenizer)
            yield example


def read_prompt(record: dict[str, Any], tokenizer: Tokenizer) -> tuple[list[int], str | None]:
    """The tokens of a prompt, and the text that training puts after it, where the record has one.

    Args:
        record: a row, or one without "completion", or one whose last message is not the
            assistant's. All its messages are the prompt then.
        tokenizer: as in :func:`read_examples`.

    Returns:
        The prompt's tokens; the completion, or what a chat template writes of the assistant's
        message, up to its first end-of-text; or None.

    Raises:
        ValueError: as :func:`read_examples`, without file and line.
    """
    fields = used_fields(record, completed=False)
    if "messages" in fields:
        prompt, reference = render(fields["messages"], tokenizer)
    else:
        prompt, reference = fields["prompt"], fields.get("completion")
    if reference is not None:
        [ids] = tokenizer.encode_corpus([reference])
        reference = tokenizer.decode(before(ids, tokenizer.eot))
    return tokenizer.encode(prompt), reference


def before(ids: list[int], end: int | None) -> list[int]:
    """The tokens before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids


def _texts(fields: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, str]:
    """The texts of the prompt and the completion of a row that has one."""
    if "messages" not in fields:
        return fields["prompt"], fields["completion"]
    prompt, completion = render(fields["messages"], tokenizer)
    return prompt, completion or ""


def _example(
    row: Row, texts: Sequence[str], ids: Sequence[list[int]], tokenizer: Tokenizer
) -> Example:
    (prompt, completion), characters, end = ids, len(texts[1]), tokenizer.eot
    if not completion:
        raise ValueError("empty completion: its text gives no tokens; write another, or drop it")
    for token in (min(prompt, default=0), max(prompt, default=0), min(completion), max(completion)):
        checked([token], tokenizer.vocab_size)
    if end is not None and completion[-1] == end:
        characters = len(texts[1].removesuffix(tokenizer.decode([end])))
    elif end is not None:
        completion = [*completion, end]
    return Example(prompt, completion, characters, row.where)


class Examples:
    """Examples in memory, of which batches are made.

    Args:
        examples: prompts and completions, at least one.
        length: tokens per sequence at most, `model.length`.
        completion_length: shorter completions are extended by end-of-text tokens to so many tokens,
            as far as `length` leaves room. These are noised and carry loss as the others do, so
            that at sampling a gap of that length ends by itself. None: the longest completion;
            without end-of-text none is extended.
        eot: the id of end-of-text, which also fills the padding; None: there is none (padding: 0).
        name: what error messages call them.

    Attributes:
        completion_length: the number that was given or found.
        sizes: (N,) int64, the number of tokens of each example, extended.
        loss_sizes: (N,) int64, the number of those that carry loss.
        completion_sizes: (N,) int64, the number of those that are not an extension.
        characters: of all completions, without end-of-text.

    Raises:
        ValueError: no examples; one that is longer than `length`, with its file and line; or a
            `completion_length` above 1 without end-of-text.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        length: int,
        completion_length: int | None = None,
        eot: int | None = None,
        name: str = "the examples",
    ) -> None:
        tokens, prompts, completions, places = array("i"), array("q"), array("q"), []
        self.characters = 0
        for example in examples:
            tokens.extend(example.prompt)
            tokens.extend(example.completion)
            prompts.append(len(example.prompt))
            completions.append(len(example.completion))
            places.append(example.where)
            self.characters += example.characters
        if not places:
            raise ValueError(f"data: no rows for {name}; give more, or change data.held_out")
        self.length, self.eot, self.name = length, eot, name
        self._tokens = np.frombuffer(tokens, np.int32)
        self._prompts, self.completion_sizes = (
            np.frombuffer(a, np.int64) for a in (prompts, completions)
        )
        self._starts = np.cumsum(self._prompts + self.completion_sizes) - self._prompts
        self._starts -= self.completion_sizes
        if completion_length is None:
            completion_length = 1 if eot is None else int(self.completion_sizes.max())
        if completion_length > 1 and eot is None:
            raise ValueError(
                f"data.completion_length: expected 1, because the vocabulary has no end-of-text to "
                f"extend completions by, got {completion_length}; leave it out, or take another "
                "data.tokenizer"
            )
        self.completion_length = completion_length
        room = np.minimum(completion_length, length - self._prompts)
        self.loss_sizes = np.maximum(self.completion_sizes, room)
        self.sizes = self._prompts + self.loss_sizes
        if (too_long := np.flatnonzero(self.sizes > length)).size:
            number = int(too_long[0])
            raise ValueError(f"{places[number]}: {self._excess(number)}")

    def __len__(self) -> int:
        return len(self.sizes)

    def batch(self, rows: Sequence[Sequence[int] | np.ndarray], width: int | None = None) -> Batch:
        """A batch (B, L) of B sequences.

        Args:
            rows: for each sequence the numbers of its examples, which stand one after another.
                `attention_mask` counts them from 1, and is 0 at the padding on the right.
            width: L; None: :meth:`width`.

        Raises:
            ValueError: examples of a sequence that together are longer than `width`.
        """
        width = self.width(rows) if width is None else width
        filler = 0 if self.eot is None else self.eot
        tokens = np.full((len(rows), width), filler, np.int64)  # extensions and padding
        loss, documents = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.int64)
        for b, row in enumerate(rows):
            if (size := self._size(row)) > width:
                raise ValueError(f"rows: row {b} has {size} tokens, expected at most {width}")
            at = 0
            for document, number in enumerate(row, start=1):
                start, prompt = self._starts[number], self._prompts[number]
                given, end = prompt + self.completion_sizes[number], at + self.sizes[number]
                tokens[b, at : at + given] = self._tokens[start : start + given]
                loss[b, at + prompt : end] = True
                documents[b, at:end] = document
                at = end
        masks = torch.from_numpy(loss), torch.from_numpy(documents)
        return Batch(torch.from_numpy(tokens), *masks, *self.counts(rows))

    def width(self, rows: Sequence[Sequence[int] | np.ndarray]) -> int:
        """The tokens of the longest of `rows`, rounded up to a multiple of 8, at most `length`.

        Raises:
            ValueError: a row that is longer than `length`.
        """
        longest = max(map(self._size, rows), default=0)
        if longest > self.length:
            raise ValueError(f"rows: one has {longest} tokens, expected at most {self.length}")
        return min(-(-longest // _MULTIPLE) * _MULTIPLE, self.length)

    def counts(self, rows: Sequence[Sequence[int] | np.ndarray]) -> tuple[int, int, int]:
        """The numbers of tokens with loss, of documents and of tokens in `rows`."""
        numbers = [number for row in rows for number in row]
        if not numbers:
            return 0, 0, 0
        sizes = (int(each[numbers].sum()) for each in (self.loss_sizes, self.sizes))
        with_loss, all_tokens = sizes
        return with_loss, len(numbers), all_tokens

    def spaced(self, most: int) -> Batch:
        """Evenly spaced examples, at most `most` of them, one a sequence."""
        return self.batch([[number] for number in evenly_spaced(len(self), most)])

    @property
    def chars_per_token(self) -> float:
        """Characters of the completions over tokens with loss, extensions among them."""
        return self.characters / int(self.loss_sizes.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with any token, with any boundary, and with `completion_length`."""
        arrays = (self._tokens, self._prompts, self.completion_sizes)
        parts = [fingerprint_of(each) for each in arrays]
        described = f"{' '.join(parts)} {self.completion_length} {self.eot}"
        return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()

    def has_fingerprint(self, saved: str) -> bool:
        """Whether a run with this fingerprint read the same examples."""
        return saved == self.fingerprint

    def _size(self, row: Sequence[int] | np.ndarray) -> int:
        return int(self.sizes[np.asarray(row, np.int64)].sum())

    def _excess(self, number: int) -> str:
        """Why an example is too long."""
        prompt, completion = int(self._prompts[number]), int(self.completion_sizes[number])
        limit = f"model.length={self.length}"
        if prompt >= self.length:
            return (
                f"prompt of {prompt} tokens leaves no room for a completion in {limit}; shorten "
                "it, or raise model.length"
            )
        return (
            f"prompt of {prompt} tokens and completion of {completion} exceed {limit}; shorten it, "
            "or raise model.length"
        )
