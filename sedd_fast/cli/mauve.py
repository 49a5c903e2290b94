"""`sedd-fast mauve`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sedd_fast.cli.genppl import JudgeBatch, JudgeName
from sedd_fast.cli.network import choose_device
from sedd_fast.cli.output import SaveTo, pairs, progress, results, save_json, writable, write_json
from sedd_fast.cli.sampler_options import COUNT, SEED, DeviceName
from sedd_fast.cli.samples import read_samples
from sedd_fast.evaluate.judge import Judge
from sedd_fast.evaluate.mauve import Features, mauve_score


def mauve(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES.jsonl",
            help="One JSON object a line with its text, as sample --json writes.",
        ),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Real texts: JSON lines, or the features of them that --keep wrote (.npz).",
        ),
    ],
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FEATURES.npz",
            callback=writable,
            help="Keep the features of the real texts, to be used again.",
            show_default=False,
        ),
    ] = None,
    judge: JudgeName = "gpt2-large",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            **COUNT,
            help="Texts are cut at so many tokens of the judge.",
            show_default="its context",
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Of the quantisation.", show_default="a tenth"),
    ] = None,
    judge_batch: JudgeBatch = 4,
    seed: Annotated[int, typer.Option(**{**SEED, "max": 2**32 - 1}, help="Of the clustering.")] = 0,
    device: DeviceName = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    save: SaveTo = None,
) -> None:
    """MAUVE: how alike drawn and real texts are as a whole.

    Features are the judge's last hidden states at a text's last token. It
    needs the library mauve-text. Both sets should be equally many, thousands,
    and cut at the same length.

    [bold]Examples[/]
      sedd-fast mauve drawn.jsonl --reference real.jsonl --keep real.npz
      sedd-fast mauve drawn.jsonl --reference real.npz --save mauve.json

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path, or a library is not installed
      130  stopped with Ctrl-C
    """
    stored = Features.load(reference) if reference.suffix == ".npz" else None
    if stored is not None and keep is not None:
        raise ValueError(f"--keep: {reference} holds features already; nothing new to keep")
    limit = max_tokens if stored is None else max_tokens or stored.max_tokens
    texts = read_samples(file).texts
    real = [] if stored is not None else read_samples(reference, "--reference").texts
    reader = Judge.from_pretrained(judge, choose_device(device))
    progress().print(f"reading the drawn texts with {judge} ...", markup=False)
    drawn = Features.of(reader, texts, limit, judge_batch)
    if stored is None:
        progress().print(f"reading the real texts with {judge} ...", markup=False)
        stored = Features.of(reader, real, limit, judge_batch)
        if keep is not None:
            stored.save(keep)
    found = mauve_score(drawn, stored, clusters, seed)
    record = {
        "samples": str(file),
        "reference": str(reference),
        "judge": judge,
        "max_tokens": drawn.max_tokens,
        "seed": seed,
        **asdict(found),
    }
    if save is not None:
        save_json(record, save)
    if as_json:
        write_json(record)
        return
    smoothed = "" if found.smoothed is None else f"   smoothed {found.smoothed:.4f}"
    about = {
        "texts": f"{found.drawn} drawn, {found.real} real, cut at {drawn.max_tokens} tokens",
        "judge": judge,
        "clusters": f"{found.clusters}, seed {seed}",
    }
    results().print(pairs(about, ("dim", "")))
    results().print()
    results().print(
        pairs({"MAUVE": f"{found.mauve:.4f}{smoothed}"}, ("dim", "bold"), len("clusters"))
    )
