"""The requests of `sample` and `infill`, one for each text to complete, and the draw of them."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.cli.network import Network
from sedd_fast.cli.output import heading, show_text, write_json
from sedd_fast.cli.sampler_options import SamplingOptions
from sedd_fast.data.json_lines import read_objects
from sedd_fast.data.prompts import Piece, decode_samples, lay_out, read_template
from sedd_fast.data.sources import read_text
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.progress import Report, counted
from sedd_fast.sampling import RowStreams
from sedd_fast.sampling.api import Step
from sedd_fast.sampling.api import infill as fill

_EXAMPLE = '{"template": "The [8] fox."} or {"prefix": "The ", "suffix": "."}'
KEYS = ("template", "prefix", "middle", "suffix", "length", "id")


@dataclass(frozen=True)
class Request:
    """A text to complete around its known tokens.

    Args:
        tokens, known: (L,), from :func:`sedd_fast.data.prompts.lay_out`.
        label: further entries of its JSON records, such as its line.
    """

    tokens: Tensor
    known: Tensor
    label: dict[str, Any] = field(default_factory=dict)


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
            raise ValueError(f"{key}: expected a text, got {json.dumps(record[key])}")
    if "template" in record:
        name = f"{dashes}template"
        if others := sorted(f"{dashes}{key}" for key in record.keys() - {"template", "id"}):
            raise ValueError(
                f"{name}: it gives all the text and its length; leave out {', '.join(others)}"
            )
        pieces, length = read_template(record["template"], tokenizer, name)
        return Request(*lay_out(pieces, tokenizer, length))
    if not isinstance(middle := record.get("middle", []), list):
        raise ValueError(f"middle: expected a list of pairs [TEXT, POS], got {json.dumps(middle)}")
    pieces = [
        Piece(record.get("prefix", ""), 0, f"{dashes}prefix"),
        *(_placed(pair, dashes) for pair in middle),
        Piece(record.get("suffix", ""), None, f"{dashes}suffix"),
    ]
    length = _length(record.get("length", length))
    return Request(*lay_out([piece for piece in pieces if piece.text], tokenizer, length))


def _length(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"length: expected a number of tokens of at least 1, got {value!r}")
    return value


def _placed(pair: object, dashes: str) -> Piece:
    if isinstance(pair, list) and len(pair) == 2:
        text, at = pair
        if isinstance(text, str) and type(at) is int and at >= 0:
            return Piece(text, at, f"{dashes}middle {text!r}")
    raise ValueError(f"middle: expected pairs [TEXT, POS], POS a token number from 0, got {pair!r}")


def from_file(path: str, tokenizer: Tokenizer, length: int) -> list[Request]:
    """The requests of a JSONL file ("-": stdin), one object a line; empty lines are skipped.

    Raises:
        ValueError: a line is no valid request (the message names the line), or the file does not
            exist or is not UTF-8.
    """
    text = sys.stdin.read() if path == "-" else read_text(Path(path), "--from")
    found = []
    for number, record in read_objects(text, path, _EXAMPLE):
        try:
            if unknown := [key for key in record if key not in KEYS]:
                raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
            label = {"line": number} | {key: record[key] for key in ("id",) if key in record}
            found.append(replace(from_record(record, tokenizer, length), label=label))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no requests; one JSON object a line, such as {_EXAMPLE}")
    return found


def draw(requests: Sequence[Request], network: Network, options: SamplingOptions) -> None:
    """Draw every request `options.num_samples` times and write the samples in their order."""
    mask = network.model.graph.mask_index
    seed = torch.Generator().seed() % 2**31 if options.seed is None else options.seed
    settings = options.record(network, seed)
    wanted = [
        (request, key)
        for number, request in enumerate(requests)
        for key in RowStreams.of_texts(seed, range(options.num_samples), number).keys
    ]
    for number, (request, row) in enumerate(_drawn(wanted, network, options), start=1):
        (text,) = decode_samples(
            row[None], request.known, network.tokenizer, mask, options.keep_after_eot
        )
        if options.as_json:
            drawn = {"text": text.text, "tokens": text.tokens, "given": text.given}
            settings["length"] = len(request.tokens)
            write_json({**request.label, **drawn, "settings": settings})
            continue
        if len(wanted) > 1:
            heading(f"{number} of {len(wanted)}")
        show_text(text.text, text.marks)


def _drawn(
    wanted: Sequence[Keyed], network: Network, options: SamplingOptions
) -> Iterator[tuple[Request, Tensor]]:
    """Every request with its sample, tokens (L,) on the CPU, in order."""
    process = (network.model, network.model.graph, network.model.noise)
    config, done = options.sampler, 0
    for batch in _batches(wanted, options.batch_size):
        label = "sampling"
        if len(batch) < len(wanted):
            label += f" {done + 1} to {done + len(batch)} of {len(wanted)}"
        given, keys = zip(*batch, strict=True)
        tokens, known = (
            torch.stack(rows).to(network.device)  # (B, L)
            for rows in zip(*((request.tokens, request.known) for request in given), strict=True)
        )
        with network.autocast(), counted(label, "steps") as report:
            callback = partial(_count, report)
            how = {"generator": RowStreams(keys), "callback": callback, **vars(config)}
            drawn = fill(*process, tokens, known, **how).cpu()
        done += len(batch)
        yield from zip(given, drawn, strict=True)


def _count(report: Report, step: Step) -> None:
    report(step.index + 1, step.steps)


def _batches(wanted: Sequence[Keyed], size: int) -> Iterator[list[Keyed]]:
    """Neighbouring requests of one length, at most ``size`` of them at a time."""
    for _, same in groupby(wanted, key=lambda keyed: len(keyed[0].tokens)):
        while batch := list(islice(same, size)):
            yield batch
