"""The requests of `sample` and `infill`, one for each text to complete, and the draw of them."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from sedd_fast.cli.network import Network
from sedd_fast.cli.output import heading, show_text, write_json
from sedd_fast.cli.sampler_options import SamplingOptions
from sedd_fast.data.files import decode, read_bytes
from sedd_fast.data.json_lines import read_objects
from sedd_fast.data.prompts import (
    LARGEST,
    Piece,
    Placed,
    as_tensors,
    decode_samples,
    place,
    read_template,
)
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.progress import Report, counted
from sedd_fast.sampling import RowStreams
from sedd_fast.sampling.api import Step
from sedd_fast.sampling.api import infill as fill

_EXAMPLE = '{"template": "The [8] fox."} or {"prefix": "The ", "suffix": "."}'
_SHOWN = 80  # characters of a wrong value in an error message
KEYS = ("template", "prefix", "middle", "suffix", "length", "id")


@dataclass(frozen=True)
class Request:
    """A text to complete around its known tokens.

    Args:
        placed: its known tokens, from :func:`sedd_fast.data.prompts.place`.
        length: of the text in tokens, L.
        label: further entries of its JSON records, such as its line.
    """

    placed: Placed
    length: int
    label: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64, and which of them are known (L,) bool."""
        return as_tensors(self.placed, self.length)


#: A request, and the key of the numbers that one sample of it is drawn with.
Keyed = tuple[Request, int]


def from_record(
    record: dict[str, Any], tokenizer: Tokenizer, length: int, dashes: str = ""
) -> Request:
    """The request of a line of a file, or of the options of `infill`.

    Args:
        record: "template" alone, or any of "prefix", "middle", "suffix" and "length".
        length: of the text in tokens, where the record does not give it.
        dashes: what errors write before the names.

    Raises:
        ValueError: a value of the wrong type, or one that does not fit.
    """
    for key in ("template", "prefix", "suffix"):
        if not isinstance(record.get(key, ""), str):
            raise ValueError(f"{key}: expected a text, got {_short(record[key])}")
    if "template" in record:
        name = f"{dashes}template"
        if others := sorted(f"{dashes}{key}" for key in record.keys() - {"template", "id"}):
            raise ValueError(
                f"{name}: it gives all the text and its length; leave out {', '.join(others)}"
            )
        pieces, length = read_template(record["template"], tokenizer, name)
        return Request(place(pieces, tokenizer, length), length)
    if not isinstance(middle := record.get("middle", []), list):
        raise ValueError(f"middle: expected a list of pairs [TEXT, POS], got {_short(middle)}")
    pieces = [
        Piece(record.get("prefix", ""), 0, f"{dashes}prefix"),
        *(_placed(pair, dashes) for pair in middle),
        Piece(record.get("suffix", ""), None, f"{dashes}suffix"),
    ]
    length = _length(record.get("length", length))
    return Request(place([piece for piece in pieces if piece.text], tokenizer, length), length)


def _length(value: object) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ValueError(
            f"length: expected a number of tokens of at least 1 and at most {LARGEST:,}, got "
            f"{_short(value)}"
        )
    return value


def _label(number: int, record: dict[str, Any]) -> dict[str, Any]:
    """What the output repeats of a line: its number and its id.

    Raises:
        ValueError: JSON cannot hold the id: NaN, infinity, or a surrogate without its pair.
    """
    if "id" not in record:
        return {"line": number}
    try:
        json.dumps(record["id"], allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(
            f"id: JSON cannot hold {_short(record['id'])}; expected a text, a finite number, or "
            "lists and objects of these"
        ) from error
    return {"line": number, "id": record["id"]}


def _short(value: object) -> str:
    """The start of a JSON value, for error messages."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _placed(pair: object, dashes: str) -> Piece:
    if isinstance(pair, list) and len(pair) == 2:
        text, at = pair
        if isinstance(text, str) and type(at) is int and at >= 0:
            return Piece(text, at, f"{dashes}middle {text!r}")
    raise ValueError(
        f"middle: expected pairs [TEXT, POS], POS a token number from 0, got {_short(pair)}"
    )


def from_file(path: str, tokenizer: Tokenizer, length: int) -> list[Request]:
    """The requests of a JSONL file ("-": stdin), one object a line; empty lines are skipped.

    Raises:
        ValueError: a line is no valid request (the message names the line), or the file does not
            exist or is not UTF-8.
    """
    content = _standard_input() if path == "-" else read_bytes(path, "--from")
    found = []
    for number, record in read_objects(decode(content, path, "--from"), path, _EXAMPLE):
        try:
            if unknown := [key for key in record if key not in KEYS]:
                raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
            request = from_record(record, tokenizer, length)
            found.append(replace(request, label=_label(number, record)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no requests; one JSON object a line, such as {_EXAMPLE}")
    return found


def _standard_input() -> bytes:
    if sys.stdin is None:
        return b""
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if raw is None else raw.read()


def draw(requests: Sequence[Request], network: Network, options: SamplingOptions) -> None:
    """Draw every request `options.num_samples` times and write the samples in their order."""
    mask = network.model.graph.mask_index
    seed = torch.Generator().seed() % 2**31 if options.seed is None else options.seed
    settings = options.record(network, seed)
    total = len(requests) * options.num_samples
    drawn = _drawn(requests, network, options, seed)
    for number, (request, row, known) in enumerate(drawn, start=1):
        (text,) = decode_samples(row[None], known, network.tokenizer, mask, options.keep_after_eot)
        if options.as_json:
            shown = {"text": text.text, "tokens": text.tokens, "given": text.given}
            settings["length"] = request.length
            write_json({**request.label, **shown, "settings": settings})
            continue
        if total > 1:
            heading(f"{number} of {total}")
        show_text(text.text, text.marks)


def _drawn(
    requests: Sequence[Request], network: Network, options: SamplingOptions, seed: int
) -> Iterator[tuple[Request, Tensor, Tensor]]:
    """Every request with its samples in order: tokens and known, (L,) on the CPU."""
    process = (network.sampled, network.model.graph, network.model.noise)
    config, device, done = options.sampler, network.device, 0
    total = len(requests) * options.num_samples
    wanted = _keyed(requests, options.num_samples, seed)
    for batch in _batches(wanted, options.batch_size):
        label = "sampling"
        if len(batch) < total:
            label += f" {done + 1} to {done + len(batch)} of {total}"
        given, keys = zip(*batch, strict=True)
        laid_out = (request.tensors() for request in given)
        tokens, known = (torch.stack(rows) for rows in zip(*laid_out, strict=True))  # (B, L)
        with network.autocast(), counted(label, "steps") as report:
            callback = partial(_count, report)
            how = {"generator": RowStreams(keys), "callback": callback, **vars(config)}
            drawn = fill(*process, tokens.to(device), known.to(device), **how).cpu()
        done += len(batch)
        yield from zip(given, drawn, known, strict=True)


def _count(report: Report, step: Step) -> None:
    report(step.index + 1, step.steps)


def _keyed(requests: Sequence[Request], samples: int, seed: int) -> Iterator[Keyed]:
    """Every request as often as samples are drawn of it."""
    for number, request in enumerate(requests):
        for key in RowStreams.of_texts(seed, range(samples), number).keys:
            yield request, key


def _batches(wanted: Iterable[Keyed], size: int) -> Iterator[list[Keyed]]:
    """Neighbouring requests of one length, at most ``size`` of them at a time."""
    for _, same in groupby(wanted, key=lambda keyed: keyed[0].length):
        while batch := list(islice(same, size)):
            yield batch
