"""What `sample` and `infill` are asked to draw, one request a text, and the drawing of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.cli.network import Network
from sedd_fast.cli.output import heading, show_text, write_json
from sedd_fast.cli.sampler_options import Settings
from sedd_fast.data.prompts import read_template
from sedd_fast.data.sources import read_text
from sedd_fast.data.texts import Drawn, Piece, lay_out, read_texts
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.progress import Report, counted
from sedd_fast.sampling.api import Step
from sedd_fast.sampling.api import infill as fill

_EXAMPLE = '{"template": "The [8] fox."} or {"prefix": "The ", "suffix": "."}'
KEYS = ("template", "prefix", "middle", "suffix", "length", "id")


@dataclass(frozen=True)
class Request:
    """A text to be drawn around what is given.

    Args:
        tokens, known: (L,), as :func:`sedd_fast.data.texts.lay_out` makes them.
        label: what JSON records carry besides, such as its line.
    """

    tokens: Tensor
    known: Tensor
    label: dict[str, Any] = field(default_factory=dict)


def from_pieces(
    prefix: str, suffix: str, middle: Sequence[Piece], tokenizer: Tokenizer, length: int,
    dashes: str = "",
) -> Request:  # fmt: skip
    """A request of a start, an end, and what is placed between them."""
    ends = (Piece(prefix, 0, f"{dashes}prefix"), Piece(suffix, None, f"{dashes}suffix"))
    start, end = ([piece] if piece.text else [] for piece in ends)
    return Request(*lay_out([*start, *middle, *end], tokenizer, length))


def from_template(
    template: str, others: Sequence[str], tokenizer: Tokenizer, name: str = "template"
) -> Request:
    """The request of a template, which goes with no other way to give text or length."""
    if others:
        raise ValueError(
            f"{name}: it gives all the text and its length; leave out {', '.join(others)}"
        )
    pieces, length = read_template(template, tokenizer, name)
    return Request(*lay_out(pieces, tokenizer, length))


def from_file(path: str, tokenizer: Tokenizer, length: int) -> list[Request]:
    """The requests of a JSONL file ("-": stdin), one object a line; empty lines are skipped.

    Raises:
        ValueError: a line that is no request; names the line.
            A file that is not there, or not UTF-8.
    """
    text = sys.stdin.read() if path == "-" else read_text(Path(path), "--from")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(_from_line(line, tokenizer, length, number))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ValueError(f"{path}: no requests; one JSON object a line, such as {_EXAMPLE}")
    return found


def _from_line(line: str, tokenizer: Tokenizer, length: int, number: int) -> Request:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected an object such as {_EXAMPLE}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object such as {_EXAMPLE}, got {line.strip()[:40]}")
    if unknown := [key for key in record if key not in KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    label = {"line": number} | ({"id": record["id"]} if "id" in record else {})
    return replace(_request(record, tokenizer, length), label=label)


def _request(record: dict[str, Any], tokenizer: Tokenizer, length: int) -> Request:
    prefix, suffix, template = (_text(record, key) for key in ("prefix", "suffix", "template"))
    if "template" in record:
        return from_template(template, sorted(record.keys() - {"template", "id"}), tokenizer)
    middle = record.get("middle", [])
    if not isinstance(middle, list):
        raise ValueError(f"middle: expected a list of pairs [TEXT, POS], got {json.dumps(middle)}")
    placed = [_placed(pair) for pair in middle]
    length = _length(record.get("length", length))
    return from_pieces(prefix, suffix, placed, tokenizer, length)


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected a text, got {json.dumps(value)}")
    return value


def _length(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"length: expected a number of tokens of at least 1, got {value!r}")
    return value


def _placed(pair: object) -> Piece:
    if isinstance(pair, list) and len(pair) == 2:
        text, at = pair
        if isinstance(text, str) and isinstance(at, int) and not isinstance(at, bool) and at >= 0:
            return Piece(text, at, f"middle {text!r}")
    raise ValueError(
        f"middle: expected pairs [TEXT, POS], POS the number of a token from 0, got {pair!r}"
    )


def draw(
    requests: Sequence[Request],
    network: Network,
    settings: Settings,
    keep_after_eot: bool,
    as_json: bool,
) -> None:
    """Draw every request `settings.batch` times and write the texts in their order."""
    mask = network.model.graph.mask_index
    total = len(requests) * settings.batch
    for number, row in _drawn(requests, network, settings):
        request = requests[number // settings.batch]
        (text,) = read_texts(row[None], request.known, network.tokenizer, mask, keep_after_eot)
        if as_json:
            write_json(_record(text, request, settings))
            continue
        if total > 1:
            heading(f"{number + 1} of {total}")
        show_text(text.text, text.marks)


def _record(text: Drawn, request: Request, settings: Settings) -> dict[str, Any]:
    drawn = {"text": text.text, "tokens": text.tokens, "given": text.given}
    length = {"length": len(request.tokens)}
    return {**request.label, **drawn, "settings": {**settings.record(), **length}}


def _drawn(
    requests: Sequence[Request], network: Network, settings: Settings
) -> Iterator[tuple[int, Tensor]]:
    """(number, tokens (L,) on the CPU) of every text, in order."""
    generator = torch.Generator().manual_seed(settings.seed)  # the CPU's: the same on any device
    process = (network.model, network.model.graph, network.model.noise)
    batch, total = settings.batch, len(requests) * settings.batch
    for group in _groups([len(request.tokens) for request in requests], batch, settings.at_once):
        label = "sampling"
        if len(group) < total:
            label += f" {group.start + 1} to {group.stop} of {total}"
        tokens = torch.stack([requests[j // batch].tokens for j in group])  # (B, L)
        known = torch.stack([requests[j // batch].known for j in group])
        place = network.device
        with network.autocast(), counted(label, "steps") as report:
            options: dict[str, Any] = {
                **settings.sampler(),
                "generator": generator,
                "callback": partial(_count, report),
            }
            drawn = fill(*process, tokens.to(place), known.to(place), **options).cpu()
        yield from zip(group, drawn, strict=True)


def _count(report: Report, step: Step) -> None:
    report(step.index + 1, step.steps)


def _groups(lengths: Sequence[int], batch: int, at_once: int) -> Iterator[range]:
    """Runs of neighbouring texts of one length, at most ``at_once`` long.

    Text j is one of the ``batch`` texts of request j // batch.
    """
    start, total = 0, len(lengths) * batch
    while start < total:
        length, stop = lengths[start // batch], start + 1
        while stop < min(total, start + at_once) and lengths[stop // batch] == length:
            stop += 1
        yield range(start, stop)
        start = stop
