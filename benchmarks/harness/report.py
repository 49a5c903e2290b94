"""What was measured, as a table, as JSON and as a chart.

The records of one contender from several processes become one: its times in every regime, its peak
extra memory, and its ratios to the floor, to the eager formulas and to torch.compile. Every ratio
is formed within one regime.
"""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Record = dict[str, Any]

KEYS = ("suite", "operation", "shape", "dtype")
TITLES = {"reused": "memory reused", "fresh": "memory fresh", "cuda": "CUDA"}
WIDTH = 118
#: The heading of the floor's column, where it is not the time of a network.
FLOORS = dict.fromkeys(("ops", "vocabulary", "noised"), "x\nfloor")
FLOORS |= dict.fromkeys(("head", "small"), "x pro-\nducts")
#: Suites whose cases share one heading.
SUITES = (("ops",), ("head",), ("vocabulary",), ("noised",), ("train", "sample"), ("small",))
END_TO_END = ("train", "sample", "small")
#: What is timed on a GPU beside the eager call (cuda_graphs.py).
GRAPHS = ("replay", "wall")
GRAPH_COLUMNS = (
    "\ngraph: the same call replayed as a CUDA graph; a dash where it cannot be captured (see the "
    "notes)\nwall: one call on an idle GPU until it is idle again, launching included"
)


def merge(parts: dict[str, Record], command: str) -> Record:
    """One record per contender from the records of each process (keyed by regime)."""
    merged: dict[tuple[str, ...], Record] = {}
    for regime, part in parts.items():
        for record in part["records"]:
            key = (*(record[k] for k in KEYS), record["implementation"])
            row = merged.setdefault(key, {k: record[k] for k in (*KEYS, "implementation", "kind")})
            row.update({k: record[k] for k in ("floor_bytes", "tensor_bytes", "at")})
            if (extra := record.get("extra_bytes")) is not None:
                row["extra_bytes"] = extra
                if record["tensor_bytes"]:
                    row["extra_tensors"] = extra / record["tensor_bytes"]
            if "median_ms" in record:
                fields = ("median_ms", "p20_ms", "p80_ms", "calls", "floor_ms", "yardsticks_ms")
                times = {k: record[k] for k in fields}
                times |= {k: record.get(k) for k in ("replay", "wall")}  # on a GPU only
                row.setdefault("regimes", {})[regime] = times
    rows = list(merged.values())
    for row in rows:
        add_ratios(row, [r for r in rows if all(r[k] == row[k] for k in KEYS)])
    first = next(iter(parts.values()))
    remarks = list(dict.fromkeys(text for part in parts.values() for text in part["remarks"]))
    environment = first["environment"] | {"command": command, "bandwidth": bandwidths(rows)}
    return {"environment": environment, "remarks": remarks, "results": rows}


def add_ratios(row: Record, rivals: list[Record]) -> None:
    """Add to every regime of ``row``: over_floor, faster_than_eager, faster_than_compile and
    faster_than_best_compile, the last also against the rewritten formulas.
    """
    for regime, times in row["regimes"].items():
        mine = times["median_ms"]

        def fastest(*kinds: str, of: str = regime) -> float | None:
            found = [r["regimes"][of]["median_ms"] for r in rivals if r["kind"] in kinds]
            return min(found, default=None)

        def over(other: float | None, by: float = mine) -> float | None:
            return None if other is None else other / by

        floor = times["floor_ms"]
        times["over_floor"] = mine / floor if floor else None
        times["faster_than_eager"] = over(fastest("eager"))
        times["faster_than_compile"] = over(fastest("compile"))
        times["faster_than_best_compile"] = over(fastest("compile", "rewritten"))


def show(results: Record) -> None:
    """Print the tables, side by side where the terminal has room for both regimes.

    Without rich, print one line for each contender and regime.
    """
    if importlib.util.find_spec("rich") is None:
        print("\n".join(plain_lines(results)))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    introduce(results, console)
    rows = results["results"]
    regimes = list(rows[0]["regimes"]) if rows else []
    groups = [regimes] if console.width >= WIDTH else [[regime] for regime in regimes]
    for chosen in groups:
        for suites in SUITES:
            part = [row for row in rows if row["suite"] in suites]
            if part:
                console.print()
                print_cases(part, chosen, console)
    if gains := ", ".join(reuse_gains(rows)):
        console.print(f"\ntraining step, fresh / reused time: {gains}", highlight=False)
    explain(results, console)


def plain_lines(results: Record) -> Iterable[str]:
    """The same figures without rich: milliseconds and the ratios of every contender and regime."""
    for row in results["results"]:
        for regime, t in row["regimes"].items():
            yield (
                f"{row['operation']}, {row['shape']}, {row['dtype']}, {TITLES[regime]}: "
                f"{row['implementation']} {ms(t['median_ms'])} ms [{ms(t['p20_ms'])}, "
                f"{ms(t['p80_ms'])}], x floor {ratio(t['over_floor'])}, "
                f"x eager {ratio(t['faster_than_eager'])}, "
                f"x compile {ratio(t['faster_than_compile'])}"
                + "".join(f", {name} {ms(t[name]['median_ms'])} ms" for name in GRAPHS if t[name])
            )
    yield from (bandwidth_line(*each) for each in results["environment"]["bandwidth"].items())
    yield from (f"note: {remark}" for remark in results["remarks"])


def introduce(results: Record, console: "Console") -> None:
    """Print the machine, the versions, the settings and the remarks."""
    e, s = results["environment"], results["environment"]["settings"]
    where = e["gpu"] or f"{e['cpu']}, {e['threads']} threads of {e['cores']} cores"
    console.print(f"\n{where}; torch {e['torch']}, sedd_fast {e['sedd_fast']}; {e['date']}")
    t = max(s["masked"], 0.01)
    console.print(
        f"noise: {100 * s['masked']:.0f} % of the positions changed "
        f"(log-linear schedule at t = {t:g}); caches {s['caches']} before each call; "
        "median \\[20th, 80th percentile] in milliseconds"
    )
    for each in e["bandwidth"].items():
        console.print(bandwidth_line(*each))
    for remark in results["remarks"]:
        console.print(f"note: {remark}")


def bandwidths(rows: list[Record]) -> dict[str, dict[str, float]]:
    """For each regime the bandwidth of a copy and of a read of the scores, in GB/s, and how many
    times longer a copy takes that allocates its result. Medians over the cases.
    """
    found: dict[str, dict[str, float]] = {}
    timed = [row for row in rows if row["tensor_bytes"] and row["dtype"] != "int64"]
    for regime in timed[0]["regimes"] if timed else ():
        pairs = [
            (row["tensor_bytes"] / 1e6, row["regimes"][regime]["yardsticks_ms"]) for row in timed
        ]
        found[regime] = {
            "copy_gb_s": median([2 * size / times["copy"] for size, times in pairs]),
            "read_gb_s": median([size / times["read"] for size, times in pairs]),
            "allocating": median([times["clone"] / times["copy"] for _, times in pairs]),
        }
    return found


def bandwidth_line(regime: str, found: dict[str, float]) -> str:
    """The bandwidths of one regime as a line."""
    return (
        f"{TITLES[regime]}: copy {found['copy_gb_s']:.1f} GB/s (read + written), read "
        f"{found['read_gb_s']:.1f} GB/s; a copy that allocates: {found['allocating']:.1f} x "
        "the time"
    )


def print_cases(rows: list[Record], regimes: list[str], console: "Console") -> None:
    """Print a heading and a small table for every case, with aligned columns."""
    cases: dict[tuple[str, ...], list[Record]] = {}
    for row in rows:
        cases.setdefault(tuple(row[k] for k in KEYS), []).append(row)
    for i, group in enumerate(cases.values()):
        if i == 0:
            console.print(table([], regimes, group[0]["suite"]))
        else:
            console.print()
        console.print(f"[bold]{title(group[0], regimes)}[/bold]", highlight=False, soft_wrap=True)
        console.print(table(group, regimes, group[0]["suite"]))


def table(rows: list[Record], regimes: list[str], suite: str) -> "Table":
    """The contenders of a case, or the column headings where there is no row."""
    from rich.table import Table

    made = Table(box=None, show_header=not rows, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("\n implementation", width=26, no_wrap=True)
    for regime in regimes:
        made.add_column(f"{TITLES[regime]}\nms \\[p20, p80]", justify="right", width=18)
        if has_graphs(regime, suite):
            made.add_column("graph\nms", justify="right", width=6)
            made.add_column("wall\nms", justify="right", width=6)
        made.add_column(FLOORS.get(suite, "x net-\nwork"), justify="right", width=6)
        made.add_column("x\neager", justify="right", width=5)
        made.add_column("x com-\npile", justify="right", width=10)
    made.add_column("extra\nMB", justify="right", width=5)
    for row in rows:
        made.add_row(*cells(row, regimes), style="green" if row["kind"] == "ours" else None)
    return made


def has_graphs(regime: str, suite: str) -> bool:
    """Whether a table shows replays and wall times."""
    return regime == "cuda" and suite not in END_TO_END


def reuse_gains(rows: list[Record]) -> Iterable[str]:
    """The speedup of a training step by memory reuse, where both regimes were measured."""
    for row in rows:
        times = row["regimes"]
        if row["suite"] == "train" and {"reused", "fresh"} <= times.keys():
            gain = times["fresh"]["median_ms"] / times["reused"]["median_ms"]
            yield f"{row['implementation']}: {gain:.2f}"


def title(row: Record, regimes: list[str]) -> str:
    """The heading of a case: operation, shape, dtype, and the times of its floor and of a copy."""
    text = f"{row['operation']}, {row['shape']}, {row['dtype']}"
    times = [row["regimes"][regime] for regime in regimes]
    floor = " | ".join(ms(t["floor_ms"]) for t in times)
    if row["suite"] in (*END_TO_END, "head"):
        what = "network alone" if row["suite"] in ("train", "sample") else "bare products"
        return f"{text}; {what} {floor} ms"
    size = f"({row['tensor_bytes'] / 1e6:,.3g} MB)"
    copy = " | ".join(ms(t["yardsticks_ms"]["copy"]) for t in times)
    return f"{text} {size}; floor {row['floor_bytes'] / 1e6:,.3g} MB, {floor} ms; copy {copy} ms"


def cells(row: Record, regimes: list[str]) -> list[str]:
    """One contender's line."""
    line = [" " + row["implementation"]]
    for regime in regimes:
        t = row["regimes"][regime]
        line.append(f"{ms(t['median_ms'])} \\[{ms(t['p20_ms'])}, {ms(t['p80_ms'])}]")
        if has_graphs(regime, row["suite"]):
            line += [ms(t[name]["median_ms"]) if t[name] else "-" for name in GRAPHS]
        line += [ratio(t["over_floor"]), ratio(t["faster_than_eager"])]
        plain, best = t["faster_than_compile"], t["faster_than_best_compile"]
        line.append(f"{ratio(plain)} ({ratio(best)})" if best != plain else ratio(plain))
    extra = row.get("extra_bytes")
    line.append("-" if extra is None else "< 1" if extra < 1e6 else f"{extra / 1e6:.0f}")
    return line


def ms(value: float) -> str:
    """A time in milliseconds with about three digits."""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """A ratio with two digits, or as an integer above ten; "-" for None."""
    if value is None:
        return "-"
    digits = 2 if value < 0.095 else 1 if value < 9.95 else 0
    return f"{value:,.{digits}f}"


def explain(results: Record, console: "Console") -> None:
    """Print what the columns mean."""
    console.print(
        "\nx floor: time over the floor, the fewest bytes that must move (rows that noise touched "
        "are read once,\n  a gradient is written once) at the copy bandwidth of the same rounds"
        "\nx products: time over the fastest form of the bare matrix products on the touched rows"
        "\nx network: time over that of the network alone (with backward and optimiser in training)"
        "\nx eager, x compile: times faster than those rows; in brackets, than the fastest "
        "torch.compile row, whose\n  rewritten form uses this package's algorithms as far as torch "
        "can express them (gradient written out, inverse CDF)"
        "\nextra MB: peak memory beyond what was there before the call, outputs included"
        + GRAPH_COLUMNS * any("cuda" in row["regimes"] for row in results["results"])
        + f"\n{results['environment']['seconds']:.0f} s in all",
        highlight=False,
    )


def plot(results: Record, path: Path) -> None:
    """Write the charts of what was measured (plotting.py).

    Without matplotlib, print how to draw them on another machine.
    """
    if importlib.util.find_spec("matplotlib") is None:
        command = "python -m benchmarks.harness.plotting FILE.json FILE.png"
        print(f"no chart: matplotlib is missing. Where it is installed, draw one with {command}")
        return
    from benchmarks.harness import plotting

    plotting.draw(results, path)
