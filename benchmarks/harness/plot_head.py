"""The charts of the head: time and peak memory of a loss with gradients, by number of positions."""

import math
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.harness.style import TITLES, colours_of, machine, save, tidy

#: The losses -> what the file of their chart is called after.
OPERATIONS = {
    "head, loss + gradients": "head",
    "cross entropy, loss + gradients": "cross-entropy",
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a chart (PNG) for each loss that was measured: FILE-head, FILE-cross-entropy."""
    for operation, name in OPERATIONS.items():
        rows = [r for r in results["results"] if r["operation"] == operation]
        if rows:
            chart(rows, machine(results), path.with_stem(f"{path.stem}-{name}"))


def chart(rows: list[dict[str, Any]], about: str, path: Path) -> None:
    """Write the chart of one loss: the first regime measured, a row of panels for each dtype."""
    dtypes = list(dict.fromkeys(r["dtype"] for r in rows))
    names = list(dict.fromkeys(r["implementation"] for r in rows))
    colours, regime = colours_of(rows, names), next(iter(rows[0]["regimes"]))
    figure, axes = plt.subplots(
        len(dtypes), 2, figsize=(9, 3 * len(dtypes) + 1.2), sharex=True, squeeze=False
    )
    for (left, right), dtype in zip(axes, dtypes, strict=True):
        own = [r for r in rows if r["dtype"] == dtype]
        for name in names:
            found = sorted((r for r in own if r["implementation"] == name), key=lambda r: r["at"])
            line = {"marker": "o", "markersize": 4, "color": colours[name], "label": name}
            x = [r["at"] for r in found]
            left.plot(x, [r["regimes"][regime]["median_ms"] for r in found], **line)
            right.plot(x, [(r.get("extra_bytes") or math.nan) / 1e6 for r in found], **line)
        floor = {r["at"]: r["regimes"][regime]["floor_ms"] for r in own}
        left.plot(*zip(*sorted(floor.items()), strict=True), "k--", label="bare products")
        left.set_ylabel("ms")
        right.set_ylabel("peak extra MB, gradients included")
        for axis in (left, right):
            axis.set_title(dtype, fontsize=9)
            axis.set_xscale("log", base=2)
            if any(y > 0 for line in axis.get_lines() for y in line.get_ydata()):
                axis.set_yscale("log")  # tiny calls may need no memory that is seen
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            tidy(axis)
    for axis in axes[-1]:
        axis.set_xlabel("positions, half of them masked")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=9)
    shape = rows[0]["shape"].split(" x ", 1)[1]
    title = f"{rows[0]['operation']}, {shape}; {about}; {TITLES[regime]}"
    save(figure, path, title, 0.12 / len(dtypes) + 0.04)
    plt.close(figure)
