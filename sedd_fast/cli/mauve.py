"""`sedd-fast mauve`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from sedd_fast.cli import options as shared
from sedd_fast.cli.output import Result, progress, writable
from sedd_fast.cli.samples import read_samples
from sedd_fast.extras import import_library


@dataclass(frozen=True)
class MauveOptions:
    """The options of `sedd-fast mauve`."""

    file: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES.jsonl",
            help="Samples: one JSON object a line, as sample --json writes.",
        ),
    ]
    reference: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Real texts: JSON lines, or their features, as --keep writes them (.npz).",
        ),
    ]
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FEATURES.npz",
            callback=writable,
            help="Write the features of the real texts here, to be used again.",
        ),
    ] = None
    judge: shared.JudgeName = "gpt2-large"
    max_tokens: Annotated[
        int | None,
        typer.Option(
            **shared.COUNT,
            help="Every text is cut at this number of the judge's tokens.",
            show_default="its context",
        ),
    ] = None
    clusters: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Number of clusters of the quantisation.",
            show_default="a tenth of the smaller set",
        ),
    ] = None
    batch_size: Annotated[shared.BatchSize, shared.Renamed(("--judge-batch",))] = 4
    seed: Annotated[
        int,
        typer.Option(**{**shared.SEED, "max": 2**32 - 1}, help="Random seed of the clustering."),
    ] = 0
    device: shared.DeviceName = "auto"
    as_json: shared.Json = False
    save: shared.SaveTo = None


@shared.expand_options
def mauve(options: MauveOptions) -> None:
    """MAUVE: how alike samples and real texts are as a whole.

    Features are the judge's last hidden states at a text's last token. It
    needs sedd-fast\\[eval]. Both sets should be of equal size, thousands
    of texts, and cut at the same length.

    [bold]Examples[/]
      sedd-fast mauve drawn.jsonl --reference real.jsonl --keep real.npz
      sedd-fast mauve drawn.jsonl --reference real.npz --save mauve.json
    """
    from sedd_fast.evaluate.judge import Judge
    from sedd_fast.evaluate.mauve import Features, mauve_score
    from sedd_fast.text.network import choose_device

    reference, keep, seed = options.reference, options.keep, options.seed
    stored = Features.load(reference) if reference.suffix == ".npz" else None
    if stored is not None and keep is not None:
        raise ValueError(f"--keep: {reference} holds features already; nothing new to keep")
    limit = options.max_tokens or (stored.max_tokens if stored is not None else None)
    samples = read_samples(options.file).texts
    texts = [] if stored is not None else read_samples(reference, "--reference").texts
    import_library("mauve", "eval", "the MAUVE score")  # before the judge has read anything
    judge = Judge.from_pretrained(options.judge, choose_device(options.device))
    progress().print(f"reading the samples with {judge.name} ...")
    drawn = Features.of(judge, samples, limit, options.batch_size)
    if stored is None:
        progress().print(f"reading the real texts with {judge.name} ...")
        stored = Features.of(judge, texts, limit, options.batch_size)
        if keep is not None:
            stored.save(keep)
    found = mauve_score(drawn, stored, options.clusters, seed)
    record = {
        "samples": str(options.file),
        "reference": str(reference),
        "judge": judge.name,
        "max_tokens": drawn.max_tokens,
        "seed": seed,
        **asdict(found),
    }
    smoothed = "" if found.smoothed is None else f"   smoothed {found.smoothed:.4f}"
    about = {
        "texts": f"{found.drawn} drawn, {found.real} real, cut at {drawn.max_tokens} tokens",
        "judge": judge.name,
        "clusters": f"{found.clusters}, seed {seed}",
    }
    Result(record, about, {"MAUVE": f"{found.mauve:.4f}{smoothed}"}).write(
        options.save, options.as_json
    )
