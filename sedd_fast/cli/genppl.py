"""`sedd-fast genppl`."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sedd_fast.cli import options as shared
from sedd_fast.cli.manual import RARE
from sedd_fast.cli.output import Result, figure
from sedd_fast.cli.samples import Draw, File, ModelOrNone, Samples, draw_samples, read_samples
from sedd_fast.progress import counted

if TYPE_CHECKING:
    import torch

    from sedd_fast.evaluate.generative import GenerativePerplexity
    from sedd_fast.evaluate.judge import Judge

#: Options of the drawing, and those of them that only SEDD has.
DRAWING = (*(field.name for field in fields(Draw)), "dtype", "tokenizer")
OF_SEDD = ("steps", "method")


@dataclass(frozen=True)
class GenpplOptions:
    """The options of `sedd-fast genppl`."""

    file: File = None
    model: ModelOrNone = None
    judge: shared.JudgeName = "gpt2-large"
    judge_batch_size: Annotated[
        int,
        typer.Option(**shared.COUNT, help="Windows that the judge reads at a time.", **RARE),
        shared.Renamed(("--judge-batch",)),
    ] = 4
    device: shared.DeviceName = "auto"
    dtype: shared.Dtype = "float32"
    tokenizer: shared.TokenizerName = None
    as_json: shared.Json = False
    save: shared.SaveTo = None


@shared.expand_options
def genppl(context: typer.Context, options: GenpplOptions, draw: Draw) -> None:
    """Generative perplexity: how likely a large model finds the samples.

    The judge tokenises the samples anew; the first token of a sample (of
    each window, where it exceeds the judge's context) is not scored. Both
    averages in use are given. A text that repeats itself is likely: read
    them beside the entropy of its tokens and the share of distinct n-grams.
    --dtype is for the model that draws; the judge runs in float32.

    [bold]Examples[/]
      sedd-fast sample -m runs/demo -n 64 --json > samples.jsonl
      sedd-fast genppl samples.jsonl --judge gpt2-large
      sedd-fast genppl -m louaaron/sedd-small -n 256 --steps 1024
    """
    from sedd_fast.evaluate.generative import generative_perplexity
    from sedd_fast.evaluate.judge import Judge
    from sedd_fast.text.network import choose_device

    device, samples = choose_device(options.device), None
    if (options.file is None) == (options.model is None):
        raise ValueError("genppl: give either SAMPLES.jsonl or --model, to draw the samples from")
    if options.file is not None:
        why = f"the samples are those of {options.file}, nothing is drawn"
        shared.refuse_given(context, DRAWING, why)
        samples = read_samples(options.file)
    # Loaded before the samples are drawn: a failure here must not cost the drawing.
    judge = Judge.from_pretrained(options.judge, device)
    samples = samples or _draw(context, options, draw)
    with counted("judging", "windows") as report:
        found = generative_perplexity(
            judge, samples.texts, samples.tokens, options.judge_batch_size, report
        )
    _result(found, judge, samples, device).write(options.save, options.as_json)


def _draw(context: typer.Context, options: GenpplOptions, draw: Draw) -> Samples:
    from sedd_fast.text.network import Baseline, load_any

    network = load_any(str(options.model), options.tokenizer, options.device, options.dtype)
    if isinstance(network, Baseline):
        shared.refuse_given(context, OF_SEDD, "an autoregressive model draws a token at a time")
    return draw_samples(network, draw)


def _result(
    found: "GenerativePerplexity", judge: "Judge", samples: Samples, device: "torch.device"
) -> Result:
    from sedd_fast.evaluate.generative import ORDERS

    record = {
        "judge": judge.name,
        "judge_context": judge.context,
        "judge_dtype": "float32",
        "device": str(device),
        "retokenised": "by the judge; first token of a window not scored",
        "samples": samples.origin,
        **found.figures(),
    }
    about = {
        "samples": f"{record['texts_scored']} of {record['texts']}, "
        f"{record['tokens_scored']:,} tokens of the judge",
        "from": samples.origin.get("file") or _drawn_from(samples.origin),
        "judge": f"{judge.name}, context {judge.context}, float32",
    }
    of = f"tokens of the {record['counted_in_tokens_of']}"
    figures = {
        name.replace("_", " "): figure(record[name], record[f"{name}_stderr"])
        for name in ("mean_of_exponentials", "exponential_of_mean")
    }
    figures["unigram entropy"] = f"{figure(record['unigram_entropy_nats'])} nats, {of}"
    figures["distinct n-grams"] = ", ".join(
        f"{n}: {figure(record[f'distinct_{n}'])}" for n in ORDERS
    )
    return Result(record, about, figures)


def _drawn_from(origin: dict[str, Any]) -> str:
    if "method" in origin:
        nucleus = f", top-p {origin['top_p']:g}" if origin["top_p"] < 1 else ""
        how = f"{origin['method']}, {origin['steps']} steps{nucleus}"
    else:
        how = f"autoregressive, top-p {origin['top_p']:g}"
    return f"{origin['model']}, {how}, length {origin['length']}, seed {origin['seed']}"
