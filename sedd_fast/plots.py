"""Pictures: a training run from its metrics.jsonl, and quality against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sedd_fast.metrics import read_metrics

if TYPE_CHECKING:
    from sedd_fast.evaluate.tradeoff import Point

_COLOURS = ("#1f5fa8", "#2e8b57", "#8a4fb0", "#b8860b", "#4d4d4d")
_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # samplers of one law lie on one another
_BASELINE_COLOURS = ("#c8501e", "#e39a6f")


def plot_training(
    metrics: str | Path,
    png: str | Path,
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Draw the loss per token and, of one in nats, bits per character (or token) by step.

    Args:
        metrics: a run's metrics.jsonl.
        png: the picture to write.
        baselines: name -> bits per character (or token), drawn as horizontal lines.

    Raises:
        ValueError: matplotlib is not installed, no such file, or no training loss in it.

    Example:
        >>> plot_training("runs/book/metrics.jsonl", "book.png", {"unigram": 4.69})
    """
    records = read_metrics(metrics)
    if not any("loss" in record for record in records):
        raise ValueError(f"plot: {metrics} holds no training loss yet")
    figure, left, right = _two_panels()
    _draw(left, records, "loss", "held_out_loss")
    known = [u for u in ("char", "token") if len(_series(records, f"bits_per_{u}")[0])]
    left.set(title="Loss", ylabel=f"{'nats' if known else 'loss'} per token", xlabel="step")
    if not known:  # of an objective that is not in nats
        figure.delaxes(right)
        return _finish(figure, (left,), png)
    unit = known[0]
    _draw(right, records, f"bits_per_{unit}", f"held_out_bits_per_{unit}")
    title = "Bits per " + ("character" if unit == "char" else "token")
    right.set(title=title, ylabel=f"bits per {'character' if unit == 'char' else 'token'}")
    right.set_xlabel("step")
    _draw_baselines(right, baselines or {})
    return _finish(figure, (left, right), png)


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
    figure, left, right = _two_panels()
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
    return _finish(figure, (left, right), png)


def _two_panels() -> tuple[Any, Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plot: matplotlib is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _finish(figure: Any, panels: Sequence[Any], png: str | Path) -> Path:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.legend(framealpha=0.9, edgecolor="none", fontsize=9)
    figure.savefig(png)
    return Path(png)


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


def _draw(axes: Any, records: Sequence[Mapping[str, Any]], train: str, held_out: str) -> None:
    steps, values = _series(records, train)
    axes.plot(steps, values, color="#9db7d5", linewidth=0.7, label="training, raw")
    axes.plot(steps, _smooth(values), color="#1f5fa8", linewidth=1.6, label="training, smoothed")
    steps, values = _series(records, held_out)
    if len(steps):
        label = "held out, averaged weights"
        axes.plot(steps, values, "o-", color="#c8501e", linewidth=1.4, markersize=4, label=label)


def _draw_baselines(axes: Any, baselines: Mapping[str, float]) -> None:
    for number, (name, value) in enumerate(baselines.items()):
        style = ("--", ":", "-.")[number % 3]
        axes.axhline(value, color="#555555", linestyle=style, linewidth=1, label=name)


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean over about a twentieth of the run, narrower towards the ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, len(values) - 1 - place))
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)
