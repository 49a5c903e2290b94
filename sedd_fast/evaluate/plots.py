"""Plots of quality against compute."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from sedd_fast.evaluate.tradeoff import LABELS, Point
from sedd_fast.extras import import_library

_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # so that curves that coincide can both be seen
_COLOURS = ("#1f5fa8", "#2e8b57", "#8a4fb0", "#b8860b", "#4d4d4d")
_BASELINE_COLOURS = ("#c8501e", "#e39a6f")


def plot_tradeoff(
    points: Sequence[Point],
    baselines: Sequence[Point],
    metric: str | None,
    png: str | Path,
    real: float | None = None,
) -> Path:
    """Plot a metric against steps and against seconds per sample, a curve for each sampler.

    Args:
        points: points of the diffusion samplers.
        baselines: autoregressive points, drawn as crosses and, against steps, as lines.
        metric: one of the points' metrics; None: seconds against steps and rows against steps.
        png: the file to write.
        real: the metric of real text, drawn as a dotted line.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("plot: there is no point to draw")
    figure, left, right = two_panels()
    named = {"seconds": "seconds per sample", "rows": "network rows per sample", **LABELS}
    upright = ("seconds", "rows") if metric is None else (metric, metric)
    across = ("steps", "steps") if metric is None else ("steps", "seconds")
    for axes, y, x in zip((left, right), upright, across, strict=True):
        _draw_curves(axes, points, x, y)
        _draw_points(axes, baselines, x, y)
        if real is not None:
            axes.axhline(real, color="#444444", linewidth=1, linestyle=":", label="real text")
        axes.set_xscale("log", base=2 if x == "steps" else 10)
        if x == "steps":
            axes.xaxis.set_major_formatter("{x:g}")
        if metric is None:
            axes.set_yscale("log")
        axes.set(xlabel=named.get(x, x), ylabel=named.get(y, y))
    left.set_title("Quality against steps" if metric else "Time against steps")
    right.set_title("Quality against time" if metric else "Network rows against steps")
    return finish(figure, (left, right), png)


def _draw_curves(axes: Any, points: Sequence[Point], x: str, y: str) -> None:
    samplers = list(dict.fromkeys(point.sampler for point in points))
    styles = zip(samplers, cycle(_COLOURS), cycle("osD^vP"), cycle(_LINES), strict=False)
    for sampler, colour, marker, line in styles:
        own = sorted((p for p in points if p.sampler == sampler), key=lambda p: p.steps)
        axes.plot(
            [_value(p, x) for p in own], [_value(p, y) for p in own], color=colour,
            marker=marker, markersize=4, linewidth=1.4, linestyle=line, label=sampler,
        )  # fmt: skip


def _draw_points(axes: Any, points: Sequence[Point], x: str, y: str) -> None:
    for point, colour in zip(points, cycle(_BASELINE_COLOURS), strict=False):
        across, up = _value(point, x), _value(point, y)
        if x == "steps":
            axes.axhline(up, color=colour, linewidth=1, linestyle="--")
        axes.plot([across], [up], "X", color=colour, markersize=8, label=point.sampler)


def _value(point: Point, name: str) -> float:
    return point.metrics[name] if name in point.metrics else getattr(point, name)


def two_panels() -> tuple[Any, Any, Any]:
    """A matplotlib figure with two axes side by side: (figure, left, right)."""
    pyplot = import_library("matplotlib.figure", "plot", "a picture")
    figure = pyplot.Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    return figure, *figure.subplots(1, 2)


def finish(figure: Any, panels: Sequence[Any], png: str | Path) -> Path:
    """Add grids and legends, and write the figure to `png`."""
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=9)
    figure.savefig(png)
    return Path(png)
