"""Samples to judge: from a file that `sedd-fast sample --json` wrote, or drawn from a model."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sedd_fast.cli.manual import RARE
from sedd_fast.cli.options import SEED, BatchSize, Length, NumSamples, Renamed, named_model
from sedd_fast.cli.sampler_options import SamplerMethod, Steps, TopP, text_option

if TYPE_CHECKING:
    from sedd_fast.text.network import Baseline, Network

File = Annotated[
    Path | None,
    typer.Argument(
        metavar="SAMPLES.jsonl",
        help="One JSON object a line with its text, as sample --json writes.",
        show_default="samples are drawn from --model",
    ),
]
ModelOrNone = Annotated[
    str | None,
    text_option(
        "--model",
        "-m",
        metavar="NAME",
        callback=named_model,
        help="Draw from this run, weights or hub name.",
    ),
]


@dataclass(frozen=True)
class Samples:
    """Texts of samples, their tokens in the model's vocabulary where known, and their origin."""

    texts: list[str]
    tokens: list[list[int]] | None
    origin: dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """How samples are drawn from a model, as options; the record contains it."""

    num_samples: Annotated[NumSamples, Renamed(("--texts", "-t"))] = 64
    steps: Steps = 128
    method: SamplerMethod = "analytic"
    top_p: TopP = 1.0
    length: Length = None
    batch_size: Annotated[BatchSize, Renamed(("--batch",))] = 16
    seed: Annotated[int, typer.Option(**SEED, help="Random seed of the drawing.")] = 0
    keep_after_eot: Annotated[
        bool,
        typer.Option("--keep-after-eot", help="Do not cut drawn samples at end-of-text.", **RARE),
    ] = False


def read_samples(path: Path, name: str = "SAMPLES") -> Samples:
    """The samples of a file of JSON lines; error messages call it `name`.

    Raises:
        ValueError: the file does not exist or is not JSON lines, or a line has no text.
    """
    records = list(_records(path, name))
    texts = [record["text"] for record in records]
    if not texts:
        raise ValueError(f"{path}: it holds no text; write one with sedd-fast sample --json")
    tokens = [record["tokens"] for record in records if "tokens" in record]
    whole = tokens if len(tokens) == len(texts) else None
    settings = records[0].get("settings")
    return Samples(texts, whole, {"file": str(path), "settings": settings})


def _records(path: Path, name: str) -> Iterator[dict[str, Any]]:
    from sedd_fast.data.basic_tokenizers import utf8
    from sedd_fast.data.files import decode, read_bytes
    from sedd_fast.data.json_lines import read_objects

    example = '{"text": "The fox."}, as sample --json writes'
    text = decode(read_bytes(path, name), str(path), name)
    for number, record in read_objects(text, str(path), example):
        if not isinstance(record.get("text"), str):
            raise ValueError(f'{path}, line {number}: no "text"; expected {example}')
        try:
            utf8(record["text"])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        tokens = record.get("tokens", [])
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise ValueError(f'{path}, line {number}: "tokens" is no list of whole numbers')
        yield record


def draw_samples(network: "Network | Baseline", draw: Draw) -> Samples:
    """Draw samples from the network.

    SEDD makes `steps` steps of `method`, the autoregressive baseline one step a token. Both draw
    tokens from the nucleus of `top_p`. Each sample is cut at its first end-of-text unless
    `keep_after_eot`.
    """
    from sedd_fast.sampling import SamplerConfig
    from sedd_fast.text import drawing
    from sedd_fast.text.network import Baseline
    from sedd_fast.text.requests import Request

    length = draw.length or network.model.config.length
    config = SamplerConfig(draw.method, draw.steps, top_p=draw.top_p)
    drawn = [
        sample
        for _, sample in drawing.draw(
            [Request([], length)], network, config, draw.num_samples, draw.seed,
            draw.batch_size, draw.keep_after_eot, progress=True,
        )
    ]  # fmt: skip
    settings = asdict(draw)
    if isinstance(network, Baseline):
        del settings["steps"], settings["method"]
    origin = {"model": network.source, **settings, "length": length}
    return Samples([d.text for d in drawn], [d.tokens for d in drawn], origin)
