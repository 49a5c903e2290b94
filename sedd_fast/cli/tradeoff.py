"""`sedd-fast tradeoff`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sedd_fast.cli.compared import DEMO, Compared, Sources, of_demo, of_preset, of_runs
from sedd_fast.cli.network import Precision
from sedd_fast.cli.output import creatable, save_json, write_json
from sedd_fast.cli.sampler_options import COUNT, MOST, SEED, DeviceName, Dtype, Length
from sedd_fast.cli.samples import ModelOrNone
from sedd_fast.cli.tradeoff_report import show
from sedd_fast.evaluate.plots import plot_tradeoff
from sedd_fast.evaluate.tradeoff import (
    LABELS,
    Point,
    as_fast,
    matches,
    measure_baseline,
    measure_sampler,
)
from sedd_fast.progress import counted
from sedd_fast.sampling.api import METHODS

RECORD, PICTURE = "tradeoff.json", "tradeoff.png"
MINUTES = 5.0  # of --demo


class Metric(str, Enum):
    """What the picture shows and a match is judged by."""

    js = "js"
    ngram = "ngram"
    entropy = "entropy"
    genppl = "genppl"


class Size(str, Enum):
    """Presets whose time can be measured without training."""

    small = "small"
    medium = "medium"


@dataclass(frozen=True)
class Grid:
    """What is drawn."""

    methods: tuple[str, ...]
    steps: tuple[int, ...]
    top_p: tuple[float, ...]


def tradeoff(
    model: ModelOrNone = None,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files of real text to compare with; the last tenth is held out.",
            show_default="the text of the run --model",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--ar",
            metavar="RUN_DIR",
            help="A run of model.kind=ar to compare with. Where it is not there it is trained, on "
            "the text and with the settings of the run --model.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        Size | None,
        typer.Option(
            help="In place of --model: networks of this size with random weights, both kinds; "
            "time and rows only.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="In place of --model and --ar: the network of sedd-fast demo and a baseline, "
            f"trained in {DEMO[0]} and {DEMO[1]} where they are not there.",
        ),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            help="With --demo: minutes of training, of each of the two.",
            show_default=f"{MINUTES:g}",
        ),
    ] = None,
    methods: Annotated[str, typer.Option(metavar="A,B,...", help="Samplers.")] = ",".join(METHODS),
    steps: Annotated[str, typer.Option(metavar="N,N,...", help="Steps of each.")] = (
        "4,8,16,32,64,128,256"
    ),
    top_p: Annotated[
        str, typer.Option(metavar="P,P,...", help="Nuclei of the autoregressive model.")
    ] = "1,0.95",
    metric: Annotated[
        Metric,
        typer.Option(
            help="js: n-gram divergence from held-out text. ngram: bits under a 5-gram. entropy: "
            "of a text's tokens. genppl: under --judge."
        ),
    ] = Metric.js,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of generative perplexity.", show_default="none"),
    ] = None,
    texts: Annotated[
        int,
        typer.Option("--texts", "-t", **COUNT, help="Texts of each point."),
    ] = 64,
    batch: Annotated[
        int,
        typer.Option("--batch", "-n", **COUNT, help="Texts drawn at once."),
    ] = 16,
    length: Length = None,
    seed: Annotated[int, typer.Option(**SEED, help="Of every point.")] = 0,
    device: DeviceName = "auto",
    dtype: Dtype = Precision.float32,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            callback=creatable,
            help=f"Where {RECORD} and {PICTURE} go.",
            show_default="the run --model, else here",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Quality against steps: every sampler, beside an autoregressive model.

    Draws --texts texts with each sampler at each number of steps; tells
    seconds and network rows a text, and how far the texts are from real
    ones. With --ar, also the steps at which SEDD is as near to real text as
    the autoregressive model of equal size, and what that costs in time.

    [bold]Examples[/]
      sedd-fast tradeoff --demo
      sedd-fast tradeoff -m runs/book --ar runs/book-ar
      sedd-fast tradeoff -m runs/demo --methods analytic --steps 8,32,128
      sedd-fast tradeoff --preset small --texts 1 --batch 1 --steps 32,64

    [bold]Exit codes[/]
      0    done
      2    a wrong option, value or path
      130  stopped with Ctrl-C
    """
    grid = Grid(tuple(_words(methods)), tuple(_numbers(steps, int)), tuple(_numbers(top_p, float)))
    _check_grid(grid)
    sources = Sources(baseline, text or [], judge, device, dtype, texts, batch, length, seed)
    if metric is Metric.genppl and judge is None:
        raise ValueError("--metric: genppl needs --judge NAME, such as gpt2-large")
    if minutes is not None and not demo:
        raise ValueError("--minutes: goes with --demo; a run has been trained, a preset is not")
    training = MINUTES if minutes is None else minutes
    asked = {"--model": model, "--preset": preset, "--demo": training if demo else None}
    compared = _compared(
        {name: value for name, value in asked.items() if value is not None}, sources
    )
    points, left_out = _points(compared, grid)
    baselines = _baselines(compared, grid)
    record = _record(compared, grid, metric, points, baselines, left_out)
    folder = out or compared.folder
    folder.mkdir(parents=True, exist_ok=True)
    chosen = metric.value if compared.quality is not None else None
    real = compared.quality.real.get(metric.value) if compared.quality is not None else None
    picture = plot_tradeoff(points, baselines, chosen, folder / PICTURE, real, LABELS)
    save_json(record, folder / RECORD)
    if as_json:
        write_json(record)
    else:
        show(record, [str(folder / RECORD), str(picture)])


def _compared(asked: dict[str, Any], sources: Sources) -> Compared:
    """What one of --model, --preset and --demo names."""
    if len(asked) != 1:
        raise ValueError("tradeoff: give one of --model, --preset and --demo")
    ((name, value),) = asked.items()
    if name == "--model":
        return of_runs(value, sources)
    if sources.baseline is not None:
        raise ValueError(f"--ar: {name} brings a baseline of its own; leave out one of the two")
    if name == "--preset" and (sources.text or sources.judge):
        raise ValueError(
            "--preset: random weights have no quality to compare; leave out TEXT and --judge"
        )
    return of_demo(value, sources) if name == "--demo" else of_preset(value.value, sources)


def _points(compared: Compared, grid: Grid) -> tuple[list[Point], dict[str, str]]:
    """The points of all samplers, and why a sampler was left out."""
    left_out = _unusable(compared, grid.methods)
    chosen = [
        (method, steps) for method in grid.methods if method not in left_out for steps in grid.steps
    ]
    if not chosen:
        raise ValueError(f"tradeoff: no sampler can draw: {next(iter(left_out.values()))}")
    points: list[Point] = []
    with compared.autocast(), counted("drawing", "points") as report:
        for method, steps in chosen:
            points.append(
                measure_sampler(compared.sedd, method, steps, compared.budget, compared.quality)
            )
            report(len(points), len(chosen))
    return points, left_out


def _unusable(compared: Compared, methods: tuple[str, ...]) -> dict[str, str]:
    """Samplers that refuse this model, each with its reason.

    Each is called once: what a first call pays for, the measured ones find ready.
    """
    refused, small = {}, replace(compared.budget, texts=compared.budget.batch)
    for method in methods:
        try:
            with compared.autocast():
                measure_sampler(compared.sedd, method, 1, small)
        except ValueError as error:
            refused[method] = str(error)
    return refused


def _baselines(compared: Compared, grid: Grid) -> list[Point]:
    model = compared.baseline
    if model is None:
        return []
    with compared.autocast():
        measure_baseline(model, 1.0, replace(compared.budget, texts=compared.budget.batch))
        return [measure_baseline(model, p, compared.budget, compared.quality) for p in grid.top_p]


def _record(
    compared: Compared,
    grid: Grid,
    metric: Metric,
    points: list[Point],
    baselines: list[Point],
    left_out: dict[str, str],
) -> dict[str, Any]:
    quality = compared.quality
    found, fast = {}, {}
    for point in baselines:
        fast[point.sampler] = _records(as_fast(points, point))
        if quality is not None:
            met = matches(points, point, metric.value, quality.real)
            found[point.sampler] = _records(met)
    return _plain(
        {
            **compared.about,
            **asdict(compared.budget),
            "grid": asdict(grid),
            "metric": metric.value if quality is not None else None,
            "real_text": quality.real if quality is not None else None,
            "points": [asdict(point) for point in points],
            "baselines": [asdict(point) for point in baselines],
            "matches": found,
            "as_fast": fast,
            "left_out": left_out,
        }
    )


def _records(found: dict[str, Point | None]) -> dict[str, Any]:
    return {name: asdict(point) if point else None for name, point in found.items()}


def _plain(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: None in their place."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_grid(grid: Grid) -> None:
    for name in grid.methods or ("",):
        if name not in METHODS:
            raise ValueError(f"--methods: expected some of {', '.join(METHODS)}, got {name!r}")
    if max(grid.steps) > MOST:
        raise ValueError(f"--steps: expected at most {MOST:,}, got {max(grid.steps)}")
    for share in grid.top_p:
        if not share <= 1:
            raise ValueError(f"--top-p: expected numbers in (0, 1], got {share}")


def _words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",") if word.strip()]


def _numbers(listed: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        numbers = [kind(word) for word in _words(listed)]
    except ValueError:
        raise ValueError(f"expected numbers with commas between them, got {listed!r}") from None
    if not numbers or min(numbers) <= 0:
        raise ValueError(f"expected positive numbers, got {listed!r}")
    return numbers
