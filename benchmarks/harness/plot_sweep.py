"""The charts of a sweep: time over floor along an axis, a panel for each operation."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from benchmarks.harness.style import TITLES, colours_of, machine, save, tidy

#: Suite -> the label of its axis.
AXES = {"vocabulary": "vocabulary", "noised": "fraction of positions that noise changed"}
COLUMNS = 4


def draw(results: dict[str, Any], suite: str, path: Path) -> None:
    """Write one chart (PNG) of the first regime that was measured."""
    rows = [row for row in results["results"] if row["suite"] == suite]
    operations = list(dict.fromkeys((r["operation"], r["dtype"]) for r in rows))
    names = list(dict.fromkeys(r["implementation"] for r in rows))
    colours, regime = colours_of(rows, names), next(iter(rows[0]["regimes"]))
    lines = -(-len(operations) // COLUMNS)
    figure, axes = plt.subplots(
        lines, COLUMNS, figsize=(3.1 * COLUMNS, 2.6 * lines + 1.1), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axis, operation in zip(axes.flat, operations, strict=False):
        own = [r for r in rows if (r["operation"], r["dtype"]) == operation]
        panel(axis, own, regime, colours, suite)
        axis.set_title(" ".join(operation), fontsize=9)
    spare = list(axes.flat)[len(operations) :]
    for axis in spare:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("time / floor")
    for column in range(COLUMNS):  # only the lowest panel of a column has labels
        used = [row[column] for row in axes if row[column] not in spare]
        if used:
            used[-1].tick_params(labelbottom=True)
            used[-1].set_xlabel(AXES[suite], fontsize=9)
    handles = [plt.Line2D([], [], color=colours[n], marker="o", markersize=4) for n in names]
    if spare:
        spare[0].legend(handles, names, loc="center left", frameon=False, fontsize=9)
    else:
        figure.legend(handles, names, loc="lower center", ncols=len(names), frameon=False)
    title = (
        f"{heading(rows, suite)}; {machine(results)}; {TITLES[regime]}\n"
        "floor: the bytes that must move, at the bandwidth of a copy of the same tensor"
    )
    save(figure, path, title, 0 if spare else 0.06)
    plt.close(figure)


def heading(rows: list[dict[str, Any]], suite: str) -> str:
    """What stays the same along the axis."""
    if suite == "noised":
        return f"{rows[0]['shape'].split(',  ')[0].rpartition(', ')[0]} scores"
    return f"at most {max(r['tensor_bytes'] for r in rows) / 1e6:,.0f} MB of scores"


def panel(
    axis: Axes, rows: list[dict[str, Any]], regime: str, colours: dict[str, str], suite: str
) -> None:
    """One operation: a line for every implementation, from the 20th to the 80th percentile."""
    for name in dict.fromkeys(r["implementation"] for r in rows):
        found = [(r["at"], r["regimes"][regime]) for r in rows if r["implementation"] == name]
        # Where no row is touched nothing must move, and there is no floor.
        points = [(at, t) for at, t in sorted(found, key=lambda f: f[0]) if t["over_floor"]]
        x = [at for at, _ in points]
        axis.plot(x, [t["over_floor"] for _, t in points], "-o", markersize=3, color=colours[name])
        low, high = ([t[p] / t["floor_ms"] for _, t in points] for p in ("p20_ms", "p80_ms"))
        axis.fill_between(x, low, high, color=colours[name], alpha=0.2, linewidth=0)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if suite == "vocabulary":
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(plt.FixedLocator([32, 512, 8192, 131072]))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.xaxis.set_minor_locator(NullLocator())
    tidy(axis)
