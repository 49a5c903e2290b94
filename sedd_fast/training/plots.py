"""A picture of a training run, from its metrics.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sedd_fast.evaluate.plots import finish, two_panels
from sedd_fast.training.metrics import read_metrics


def plot_training(
    metrics: str | Path,
    png: str | Path,
    baselines: Mapping[str, float] | None = None,
    held_out_source: str = "",
) -> Path:
    """Plot the loss per token by step and, if it is in nats, bits per character (or token).

    Args:
        metrics: a run's metrics.jsonl.
        png: path of the picture.
        baselines: name -> bits per character (or token), drawn as horizontal lines.
        held_out_source: where the held-out text is from, for a line under the panels.

    Raises:
        ValueError: no such file, or no training loss in it.

    Example:
        >>> plot_training("runs/book/metrics.jsonl", "book.png", {"unigram": 4.69})
    """
    records = read_metrics(metrics)
    if not any("loss" in record for record in records):
        raise ValueError(f"plot: {metrics} holds no training loss yet")
    figure, left, right = two_panels()
    if held_out_source:
        figure.supxlabel(f"held out: {held_out_source}", fontsize="small")
    _draw(left, records, "loss", "held_out_loss")
    known = [u for u in ("char", "token") if len(_series(records, f"bits_per_{u}")[0])]
    left.set(title="Loss", ylabel=f"{'nats' if known else 'loss'} per token", xlabel="step")
    if not known:  # the objective is not in nats
        figure.delaxes(right)
        return finish(figure, (left,), png)
    unit = known[0]
    _draw(right, records, f"bits_per_{unit}", f"held_out_bits_per_{unit}")
    name = "character" if unit == "char" else "token"
    right.set(title=f"Bits per {name}", ylabel=f"bits per {name}", xlabel="step")
    for number, (baseline, value) in enumerate((baselines or {}).items()):
        style = ("--", ":", "-.")[number % 3]
        right.axhline(value, color="#555555", linestyle=style, linewidth=1, label=baseline)
    return finish(figure, (left, right), png)


def _draw(axes: Any, records: Sequence[Mapping[str, Any]], train: str, held_out: str) -> None:
    steps, values = _series(records, train)
    axes.plot(steps, values, color="#9db7d5", linewidth=0.7, label="training, raw")
    axes.plot(steps, _smooth(values), color="#1f5fa8", linewidth=1.6, label="training, smoothed")
    steps, values = _series(records, held_out)
    if len(steps):
        label = "held out, averaged weights"
        axes.plot(steps, values, "o-", color="#c8501e", linewidth=1.4, markersize=4, label=label)


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
