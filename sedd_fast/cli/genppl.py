"""`sedd-fast genppl`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
import typer

from sedd_fast.cli.errors import refuse_given
from sedd_fast.cli.network import Baseline, Precision, choose_device, load_any
from sedd_fast.cli.output import SaveTo, pairs, results, save_json, write_json
from sedd_fast.cli.sampler_options import (
    COUNT,
    DEFAULT,
    SEED,
    DeviceName,
    Dtype,
    Length,
    Steps,
    TokenizerName,
    TopP,
    Way,
)
from sedd_fast.cli.samples import (
    Draw,
    File,
    ModelOrNone,
    Samples,
    Texts,
    draw_samples,
    read_samples,
)
from sedd_fast.evaluate.generative import ORDERS, GenerativePerplexity, generative_perplexity
from sedd_fast.evaluate.judge import Judge
from sedd_fast.progress import counted

JudgeName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="A causal language model of transformers: hub name or directory."
    ),
]
JudgeBatch = Annotated[
    int,
    typer.Option("--judge-batch", **COUNT, help="Texts the judge reads at once."),
]


#: Options of the drawing, and those of them that only SEDD has.
DRAWING = (
    "texts", "steps", "method", "top_p", "length", "batch", "seed", "dtype", "tokenizer",
    "keep_after_eot",
)  # fmt: skip
OF_SEDD = ("steps", "method")


def genppl(
    context: typer.Context,
    file: File = None,
    model: ModelOrNone = None,
    judge: JudgeName = "gpt2-large",
    texts: Texts = 64,
    steps: Steps = 128,
    method: Way = DEFAULT,
    top_p: TopP = 1.0,
    length: Length = None,
    batch: Annotated[
        int,
        typer.Option("--batch", "-n", **COUNT, help="Texts drawn at once."),
    ] = 16,
    judge_batch: JudgeBatch = 4,
    seed: Annotated[int, typer.Option(**SEED, help="Of the drawn texts.")] = 0,
    device: DeviceName = "auto",
    dtype: Dtype = Precision.float32,
    tokenizer: TokenizerName = None,
    keep_after_eot: Annotated[
        bool, typer.Option("--keep-after-eot", help="Do not cut drawn texts at end-of-text.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    save: SaveTo = None,
) -> None:
    """Generative perplexity: how likely a large model finds drawn texts.

    The texts are tokenised anew by the judge; the first token of a text
    (of each window, where it exceeds the judge's context) is not scored.
    Both averages in use are given. A text that repeats itself is likely: read
    them beside the entropy of its tokens and the share of distinct n-grams.
    --dtype is of the model that draws; the judge runs in float32.

    [bold]Examples[/]
      sedd-fast sample -m runs/demo -n 64 --json > texts.jsonl
      sedd-fast genppl texts.jsonl --judge gpt2-large
      sedd-fast genppl -m louaaron/sedd-small --texts 256 --steps 1024

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path, or transformers is not installed
      130  stopped with Ctrl-C
    """
    where = choose_device(device)
    if (file is None) == (model is None):
        raise ValueError("genppl: give either SAMPLES.jsonl or --model, to draw the texts from")
    if file is not None:
        refuse_given(context, DRAWING, f"the texts are those of {file}, nothing is drawn")
    samples = None if file is None else read_samples(file)
    reader = Judge.from_pretrained(judge, where)  # first: a failure here should not cost a drawing
    if samples is None:
        draw = Draw(texts, length, steps, method.value, seed, batch, keep_after_eot, top_p)
        network = load_any(str(model), tokenizer, device, dtype)
        if isinstance(network, Baseline):
            refuse_given(context, OF_SEDD, "an autoregressive model draws a token at a time")
        samples = draw_samples(network, draw)
    with counted("judging", "windows") as report:
        found = generative_perplexity(reader, samples.texts, samples.tokens, judge_batch, report)
    record = _record(found, reader, samples, where)
    if save is not None:
        save_json(record, save)
    if as_json:
        write_json(record)
    else:
        _show(record)


def _record(
    found: GenerativePerplexity, judge: Judge, samples: Samples, where: torch.device
) -> dict[str, Any]:
    figures = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.figures().items()
    }
    return {
        "judge": judge.name,
        "judge_context": judge.context,
        "judge_dtype": "float32",
        "device": str(where),
        "retokenised": "by the judge; first token of a window not scored",
        "samples": samples.origin,
        **figures,
    }


def _show(record: dict[str, Any]) -> None:
    origin = record["samples"]
    about = {
        "texts": f"{record['texts_scored']} of {record['texts']}, "
        f"{record['tokens_scored']:,} tokens of the judge",
        "from": origin.get("file") or _drawn_from(origin),
        "judge": f"{record['judge']}, context {record['judge_context']}, float32",
    }
    of = f"tokens of the {record['counted_in_tokens_of']}"
    figures = {
        "mean of exponentials": _figure(record, "mean_of_exponentials"),
        "exponential of mean": _figure(record, "exponential_of_mean"),
        "unigram entropy": f"{_number(record['unigram_entropy_nats'])} nats, {of}",
        "distinct n-grams": ", ".join(f"{n}: {_number(record[f'distinct_{n}'])}" for n in ORDERS),
    }
    console, width = results(), max(map(len, figures))
    console.print(pairs(about, ("dim", ""), width))
    console.print()
    console.print(pairs(figures, ("dim", "bold"), width))


def _drawn_from(origin: dict[str, Any]) -> str:
    if "method" in origin:
        nucleus = f", top-p {origin['top_p']:g}" if origin["top_p"] < 1 else ""
        how = f"{origin['method']}, {origin['steps']} steps{nucleus}"
    else:
        how = f"autoregressive, top-p {origin['top_p']:g}"
    return f"{origin['model']}, {how}, length {origin['length']}, seed {origin['seed']}"


def _figure(record: dict[str, Any], name: str) -> str:
    error = record[f"{name}_stderr"]
    return _number(record[name]) + (f" ± {error:.3f}" if error is not None else "")


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3f}"
