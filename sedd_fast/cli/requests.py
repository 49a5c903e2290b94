"""The requests of `sample` and `infill`: those of a file, and the samples written to stdout."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sedd_fast.cli.output import heading, progress, show_text, write_json
from sedd_fast.cli.sampler_options import SamplingOptions
from sedd_fast.data.examples import before
from sedd_fast.data.files import decode, read_bytes
from sedd_fast.data.json_lines import read_objects
from sedd_fast.data.prompts import Sample
from sedd_fast.data.prompts import decode as decode_tokens
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.text import drawing
from sedd_fast.text.network import Network
from sedd_fast.text.requests import Request, from_record, from_row, short

_EXAMPLE = '{"template": "The [8] fox."}, {"prefix": "The "} or {"prompt": "2+2="}'
KEYS = ("template", "prefix", "middle", "suffix", "length", "id")


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
            f"id: JSON cannot hold {short(record['id'])}; expected a text, a finite number, or "
            "lists and objects of these"
        ) from error
    return {"line": number, "id": record["id"]}


def from_file(
    path: str, tokenizer: Tokenizer, length: int, completion_length: int | None = None
) -> list[Request]:
    """The requests of a JSONL file ("-": stdin), one object a line; empty lines are skipped.

    A line with "prompt" or "messages" is a row as training reads it, whose completion is drawn:
    `completion_length` tokens of it, or up to `length` in all.

    Raises:
        ValueError: a line is no valid request (the message names the line), or the file does not
            exist or is not UTF-8.
    """
    content = _standard_input() if path == "-" else read_bytes(path, "--from")
    found = []
    for number, record in read_objects(decode(content, path, "--from"), path, _EXAMPLE):
        try:
            if "prompt" in record or "messages" in record:
                request = from_row(record, tokenizer, length, completion_length)
            else:
                if unknown := [key for key in record if key not in KEYS]:
                    raise ValueError(
                        f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}, and prompt or "
                        "messages"
                    )
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
    seed = drawing.new_seed() if options.seed is None else options.seed
    settings = options.record(network, seed)
    total = len(requests) * options.num_samples
    compared: list[bool] = []
    calls = 0
    samples = drawing.draw(
        requests, network, options.sampler, options.num_samples, seed, options.batch_size,
        options.keep_after_eot, progress=True,
    )  # fmt: skip
    for number, (request, sample) in enumerate(samples, start=1):
        completed = _completed(request, sample, network)
        calls += sample.network_calls
        if "match" in completed:
            compared.append(completed["match"])
        if options.as_json:
            shown: dict[str, Any] = {
                "text": sample.text, "tokens": sample.tokens, "given": sample.given,
            }  # fmt: skip
            shown |= completed
            settings["length"] = request.length
            shown["network_calls"] = sample.network_calls
            write_json({**request.label, **shown, "settings": settings})
            continue
        expected = completed.get("reference") if not completed.get("match", True) else None
        if total > 1 or expected is not None:
            heading(
                f"{number} of {total}" + ("" if expected is None else f", expected {expected!r}")
            )
        show_text(sample.text, sample.marks)
    if options.sampler.is_decoding:
        progress().print(f"{calls / total:.1f} network calls a sample, on average")
    if compared:
        right, of = sum(compared), len(compared)
        progress().print(f"{right} of {of} completions equal their reference ({right / of:.1%})")


def _completed(request: Request, sample: Sample, network: Network) -> dict[str, Any]:
    """The completion of a prompt, and whether it is that of the row, white space at ends aside."""
    if request.prompt_length is None:
        return {}
    tokens, end = sample.tokens[request.prompt_length :], network.tokenizer.eot
    mask = network.model.graph.mask_index
    completion = decode_tokens(tokens, network.tokenizer, mask)
    found: dict[str, Any] = {"completion": completion}
    if request.reference is not None:
        text = decode_tokens(before(tokens, end), network.tokenizer, mask)
        match = text.strip() == request.reference.strip()
        found |= {"reference": request.reference, "match": match}
    return found
