"""The tables of a report: a heading and a small table for every case, with aligned columns."""

from typing import TYPE_CHECKING

from benchmarks.harness.merging import CASE, Record

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TITLES = {"reused": "memory reused", "fresh": "memory fresh", "cuda": "CUDA"}
#: Suites whose floor is the time of a network; those whose cases share one heading.
NETWORKS = ("train", "sample", "preset")
SUITES = (("ops",), ("head",), ("vocabulary",), ("noised",), NETWORKS, ("small",))
END_TO_END = (*NETWORKS, "small")
#: Suites whose floor is the fewest bytes that must move.
OPERATIONS = ("ops", "vocabulary", "noised")
#: The heading of the floor's column, where it is not the time of a network.
FLOORS = dict.fromkeys(OPERATIONS, "x\nfloor") | dict.fromkeys(("head", "small"), "x pro-\nducts")
#: What is timed on a GPU beside the eager call (cuda_graphs.py).
GRAPHS = ("replay", "wall")
#: Width of the tables with both regimes of a CPU side by side.
WIDTH = 120


def print_cases(rows: list[Record], regimes: list[str], console: "Console") -> None:
    """Print every case under one heading of the columns."""
    from rich.padding import Padding

    cases: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        cases.setdefault(tuple(row[k] for k in CASE), []).append(row)
    for i, group in enumerate(cases.values()):
        if i == 0:
            console.print(table([], regimes, group[0]["suite"]))
        else:
            console.print()
        console.print(f"[bold]{title(group[0])}[/bold]", highlight=False)
        console.print(Padding(floors(group, regimes), (0, 0, 0, 2), expand=False), highlight=False)
        console.print(table(group, regimes, group[0]["suite"]))


def table(rows: list[Record], regimes: list[str], suite: str) -> "Table":
    """The contenders of a case, or the column headings where there is no row."""
    from rich.table import Table

    made = Table(box=None, show_header=not rows, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("\n implementation", width=26, no_wrap=True)
    for regime in regimes:
        cycles = has_cycles(regime, suite)
        wide = 16 if cycles else 19  # whole runs take more digits
        made.add_column(f"{TITLES[regime]}\nms \\[p20-p80]", justify="right", width=wide)
        if has_graphs(regime, suite):
            made.add_column("graph\nms", justify="right", width=6)
            made.add_column("wall\nms", justify="right", width=6)
        width = 5 if cycles else 6
        made.add_column(FLOORS.get(suite, "x net-\nwork"), justify="right", width=width)
        if cycles:
            made.add_column("cyc/\nelem", justify="right", width=4)
        made.add_column("x\neager", justify="right", width=5)
        made.add_column("x com-\npile", justify="right", width=9)
    made.add_column("extra\nMB", justify="right", width=5)
    for row in rows:
        made.add_row(*cells(row, regimes), style="green" if row["kind"] == "ours" else None)
    return made


def has_graphs(regime: str, suite: str) -> bool:
    """Whether a table shows replays and wall times."""
    return regime == "cuda" and suite not in END_TO_END


def has_cycles(regime: str, suite: str) -> bool:
    """Whether a table shows cycles per touched element."""
    return regime != "cuda" and suite in OPERATIONS


def title(row: Record) -> str:
    """The heading of a case: operation, shape, dtype, size and instruction set."""
    text = f"{row['operation']}, {row['shape']}, {row['dtype']}"
    if row["suite"] in OPERATIONS:
        text += f" ({row['tensor_bytes'] / 1e6:,.3g} MB)"
    return text + (f", {row['instruction_set']}" if row["instruction_set"] else "")


def floors(group: list[Record], regimes: list[str]) -> str:
    """The floor of a case in ms, and of another form of the operation where that has its own."""

    def times(row: Record, name: str) -> str:
        return " | ".join(ms(row["regimes"][regime][name]) for regime in regimes)

    first = group[0]
    if first["suite"] not in OPERATIONS:
        what = "network alone" if first["suite"] in NETWORKS else "bare products"
        return f"{what} {times(first, 'floor_ms')} ms{memory(first)}"
    by_size = {row["floor_bytes"]: row for row in reversed(group)}
    found = []
    for name, size in zip(("floor", "under autograd"), sorted(by_size), strict=False):
        found.append(f"{name} {size / 1e6:,.3g} MB, {times(by_size[size], 'floor_ms')} ms")
    copies = (first["regimes"][regime]["yardsticks_ms"]["copy"] for regime in regimes)
    return "; ".join([*found, f"copy {' | '.join(map(ms, copies))} ms"])


def memory(row: Record) -> str:
    """What the extra memory of a case is compared with: a tenth of the logits."""
    if row["logits_bytes"] is None:
        return ""
    besides, tenth = row["returned_bytes"], row["logits_bytes"] / 10
    found = f"; a tenth of the logits {tenth / 1e6:,.3g} MB"
    return found + (f"; extra MB besides gradients of {besides / 1e6:,.3g} MB" if besides else "")


def cells(row: Record, regimes: list[str]) -> list[str]:
    """One contender's line."""
    line = [" " + row["implementation"]]
    for regime in regimes:
        t = row["regimes"][regime]
        line.append(f"{ms(t['median_ms'])} \\[{ms(t['p20_ms'])}-{ms(t['p80_ms'])}]")
        if has_graphs(regime, row["suite"]):
            line += [ms(t[name]["median_ms"]) if t[name] else "-" for name in GRAPHS]
        line.append(ratio(t["over_floor"]))
        if has_cycles(regime, row["suite"]):
            line.append(ratio(t["cycles"]))
        line.append(ratio(t["faster_than_eager"]))
        plain, best = t["faster_than_compile"], t["faster_than_best_compile"]
        line.append(f"{ratio(plain)} ({ratio(best)})" if best != plain else ratio(plain))
    extra = row.get("besides_bytes", row.get("extra_bytes"))
    line.append("-" if extra is None else "< 1" if extra < 1e6 else f"{extra / 1e6:.0f}")
    return line


def ms(value: float) -> str:
    """A time in milliseconds with about three digits."""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """A ratio with two digits, as an integer above ten, in thousands ("12k") from 10,000; "-" for
    None.
    """
    if value is None:
        return "-"
    if value >= 9999.5:
        return f"{value / 1000:.0f}k"
    digits = 2 if value < 0.095 else 1 if value < 9.95 else 0
    return f"{value:,.{digits}f}"
