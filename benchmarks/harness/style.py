"""What the charts share: colours, axes without a frame, and a title that names the machine."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

TITLES = {"reused": "memory reused", "fresh": "memory fresh (glibc's defaults)", "cuda": "CUDA"}
COLOURS = {
    "eager": "#b9b9b9",
    "original": "#7d7d7d",
    "compile": "#e8b04a",
    "rewritten": "#c77d1e",
    "yardstick": "#b3679b",
}
OURS = ("#1f6fb4", "#0f9d8a", "#6a4fb3", "#3aa0d8")


def colours_of(rows: list[dict[str, Any]], names: list[str]) -> dict[str, str]:
    """A colour for every implementation; each of ours has its own."""
    kinds = {r["implementation"]: r["kind"] for r in rows}
    ours = [name for name in names if kinds[name] == "ours"]
    return {
        name: OURS[ours.index(name) % len(OURS)] if name in ours else COLOURS[kinds[name]]
        for name in names
    }


def machine(results: dict[str, Any]) -> str:
    """The device, the instruction set, the version of torch and the day."""
    e = results["environment"]
    names = [about["name"] for about in e.get("instruction_sets", ()) if about["name"]]
    where = e["gpu"] or ", ".join([e["cpu"], *names, f"{e['threads']} threads"])
    return f"{where}, torch {e['torch']}, {e['date'][:10]}"


def tidy(axis: Axes) -> None:
    """Horizontal grid lines behind the data, and no frame above and on the right."""
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path, title: str, below: float = 0) -> None:
    """Write the PNG; ``below`` is the share of its height that is kept free for a legend."""
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(path, dpi=150)
