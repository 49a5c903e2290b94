"""`sedd-fast tradeoff`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sedd_fast.cli.errors import warn
from sedd_fast.cli.options import expand_options
from sedd_fast.cli.output import save_json, write_json
from sedd_fast.cli.tradeoff_options import PICTURE, RECORD, Grid, TradeoffOptions
from sedd_fast.extras import MissingLibraryError
from sedd_fast.progress import counted

if TYPE_CHECKING:
    from sedd_fast.cli.tradeoff_networks import Compared
    from sedd_fast.evaluate.tradeoff import Point


@expand_options
def tradeoff(options: TradeoffOptions) -> None:
    """Quality against steps: every sampler, beside an autoregressive model.

    Draws samples with each sampler at each number of steps. Reports seconds
    and network rows per sample, and how far the samples are from real text.
    With --ar, also the steps at which SEDD is as near to real text as the
    autoregressive model of equal size, and what that costs in time.

    [bold]Examples[/]
      sedd-fast tradeoff --demo
      sedd-fast tradeoff -m runs/book --ar runs/book-ar
      sedd-fast tradeoff -m runs/demo --methods analytic --steps 8,32,128
      sedd-fast tradeoff --preset small -n 1 --steps 32,64
    """
    from sedd_fast.cli.tradeoff_networks import find_networks
    from sedd_fast.cli.tradeoff_report import show
    from sedd_fast.evaluate.plots import plot_tradeoff
    from sedd_fast.evaluate.tradeoff import as_fast, matches

    grid = Grid.of(options)
    compared = find_networks(options)
    points, left_out = _points(compared, grid)
    baselines = _baselines(compared, grid)
    real = compared.quality.real if compared.quality else {}
    metric = options.metric if real else None
    record = {
        **compared.about,
        **asdict(compared.budget),
        "grid": asdict(grid),
        "metric": metric,
        "real_text": real or None,
        "points": [asdict(point) for point in points],
        "baselines": [asdict(point) for point in baselines],
        "matches": {
            point.sampler: _records(matches(points, point, options.metric, real))
            for point in baselines
            if real
        },
        "as_fast": {point.sampler: _records(as_fast(points, point)) for point in baselines},
        "left_out": left_out,
    }
    folder = options.out or compared.folder
    folder.mkdir(parents=True, exist_ok=True)
    save_json(record, folder / RECORD)
    files = [str(folder / RECORD)]
    try:
        reference = real.get(options.metric)
        files.append(str(plot_tradeoff(points, baselines, metric, folder / PICTURE, reference)))
    except MissingLibraryError as error:
        warn(f"there is no picture: {error}")
    if options.as_json:
        write_json(record)
    else:
        show(record, files)


def _points(compared: "Compared", grid: Grid) -> tuple[list["Point"], dict[str, str]]:
    """The points of all samplers, and why a sampler was left out: it refuses this model."""
    from sedd_fast.evaluate.tradeoff import measure
    from sedd_fast.sampling.config import SamplerConfig

    points: list[Point] = []
    left_out: dict[str, str] = {}
    sedd, budget = compared.sedd, compared.budget
    with compared.autocast(), counted("drawing", "points") as report:
        for method in grid.methods:
            try:
                # Called once before, so that the costs of a first call are not in the measurements.
                measure(sedd, SamplerConfig(method, 1), budget.one_batch())
            except ValueError as error:
                left_out[method] = str(error)
                continue
            for steps in grid.steps:
                config = SamplerConfig(method, steps)
                points.append(measure(sedd, config, budget, compared.quality))
                report(len(points), (len(grid.methods) - len(left_out)) * len(grid.steps))
    if not points:
        raise ValueError(f"tradeoff: no sampler can draw: {next(iter(left_out.values()))}")
    return points, left_out


def _baselines(compared: "Compared", grid: Grid) -> list["Point"]:
    from sedd_fast.evaluate.tradeoff import measure
    from sedd_fast.sampling.config import SamplerConfig

    model = compared.baseline
    if model is None:
        return []
    with compared.autocast():
        measure(model, SamplerConfig(), compared.budget.one_batch())
        return [
            measure(model, SamplerConfig(top_p=top_p), compared.budget, compared.quality)
            for top_p in grid.top_p
        ]


def _records(found: dict[str, "Point | None"]) -> dict[str, Any]:
    return {name: asdict(point) if point else None for name, point in found.items()}
