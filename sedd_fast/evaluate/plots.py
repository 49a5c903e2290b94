"""Pictures of quality against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from sedd_fast.evaluate.tradeoff import Point


def plot_tradeoff(
    points: Sequence[Point],
    baselines: Sequence[Point],
    metric: str | None,
    png: str | Path,
    real: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Draw a metric against steps and against seconds a text, a curve for each sampler.

    Args:
        points: of the samplers.
        baselines: autoregressive points, drawn as crosses and, against steps, as lines.
        metric: one of the points' metrics; None: seconds against steps and rows against steps.
        png: the picture to write.
        real: the metric of real text, a dotted line.
        labels: metric -> what stands on its axis.

    Raises:
        ValueError: matplotlib is not installed, or there is no point.
    """
    if not points:
        raise ValueError("plot: there is no point to draw")
    figure, left, right = two_panels()
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
        known = {"seconds": "seconds per text", "rows": "network rows per text"} | dict(
            labels or {}
        )
        axes.set(xlabel=known.get(x, x), ylabel=known.get(y, y))
    left.set_title("Quality against steps" if metric else "Time against steps")
    right.set_title("Quality against time" if metric else "Network rows against steps")
    return finish(figure, (left, right), png)


_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # samplers of one law lie on one another


_BASELINE_COLOURS = ("#c8501e", "#e39a6f")


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


_COLOURS = ("#1f5fa8", "#2e8b57", "#8a4fb0", "#b8860b", "#4d4d4d")


def two_panels() -> tuple[Any, Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plot: matplotlib is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, left, right


def finish(figure: Any, panels: Sequence[Any], png: str | Path) -> Path:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=9)
    figure.savefig(png)
    return Path(png)
