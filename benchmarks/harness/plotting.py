"""The charts of ``run.py``: time over floor on a logarithmic axis, a panel for each memory regime.

    python -m benchmarks.harness.plotting figures.json figures.png   # from what run.py --json wrote

The two charts of a sweep have names of their own, figures-vocabulary.png and figures-noised.png,
and so have those of the heads, figures-head.png and figures-cross-entropy.png. Where several
instruction sets were measured, each has its charts: figures-avx2.png.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.harness import plot_head, plot_sweep
from benchmarks.harness.command import read_json
from benchmarks.harness.style import TITLES, colours_of, machine, save
from benchmarks.harness.tables import END_TO_END


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the charts (PNG) of what was measured."""
    sets = results["environment"]["instruction_sets"]
    for about in sets:
        own = [row for row in results["results"] if row["instruction_set"] == about["name"]]
        environment = results["environment"] | {"instruction_sets": [about]}
        stem = f"{path.stem}-{about['name']}" if len(sets) > 1 else path.stem
        draw_set(results | {"environment": environment, "results": own}, path.with_stem(stem))


def draw_set(results: dict[str, Any], path: Path) -> None:
    """Write the charts of one instruction set."""
    suites = {row["suite"] for row in results["results"]}
    for suite in suites & set(plot_sweep.AXES):
        plot_sweep.draw(results, suite, path.with_stem(f"{path.stem}-{suite}"))
    if "head" in suites:
        plot_head.draw(results, path)
    if suites - {"head", *plot_sweep.AXES}:
        bars(results, path)


def bars(results: dict[str, Any], path: Path) -> None:
    """Write the chart of every operation and contender."""
    rows = drawable(results["results"])
    regimes = list(rows[0]["regimes"])
    cases = list(dict.fromkeys((r["operation"], r["dtype"]) for r in rows))
    names = list(dict.fromkeys(r["implementation"] for r in rows))
    height = 1.4 + sum(0.2 * len(of(rows, case)) + 0.25 for case in cases)
    figure, axes = plt.subplots(
        1,
        len(regimes),
        figsize=(3 + 4.5 * len(regimes), height),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    colours = colours_of(rows, names)
    for axis, regime in zip(axes[0], regimes, strict=True):
        panel(axis, rows, cases, regime, colours)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="lower center", ncols=min(4, len(names)), frameon=False)
    title = (
        f"{rows[0]['shape']} scores; {machine(results)}\n"
        "floor: the bytes that must move, at the bandwidth of a copy"
    )
    below = 0.3 * (1 + (len(names) - 1) // 4) + 0.2
    save(figure, path, title, below / height)
    plt.close(figure)


def drawable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operations on scores, or the end-to-end runs where there are none.

    Noising tokens takes microseconds in every memory regime: its bars would show nothing.
    """
    ops = [row for row in rows if row["suite"] == "ops"]
    runs = [row for row in rows if row["suite"] in END_TO_END]
    return [row for row in ops or runs if row["dtype"] != "int64"]


def of(rows: list[dict[str, Any]], case: tuple[str, str]) -> list[dict[str, Any]]:
    """The rows of one case."""
    return [r for r in rows if (r["operation"], r["dtype"]) == case]


def panel(
    axis: Axes,
    rows: list[dict[str, Any]],
    cases: list[tuple[str, str]],
    regime: str,
    colours: dict[str, str],
) -> None:
    """One regime: groups of horizontal bars from the top down, each with its number."""
    y, ticks, labels = 0.0, [], []
    for case in cases:
        group = of(rows, case)
        ticks.append(y + (len(group) - 1) / 2)
        labels.append(" ".join(case))
        for row in group:
            value = row["regimes"][regime]["over_floor"]
            if value:
                colour = colours[row["implementation"]]
                axis.barh(y, value - 1, left=1, height=0.9, color=colour)
                axis.text(max(value, 1) * 1.06, y, f"{value:.3g}", va="center_baseline", fontsize=7)
            y += 1
        y += 1.2
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(ticks, labels)
    axis.set_ylim(y - 1.2, -1)
    axis.margins(x=0.12)
    axis.set_xlabel("time / floor" if rows[0]["suite"] == "ops" else "time / network alone")
    axis.set_title(TITLES[regime], fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    draw(read_json(sys.argv[1]), Path(sys.argv[2]))
