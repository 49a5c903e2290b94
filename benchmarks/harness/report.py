"""What was measured, printed: the machine, the tables (tables.py), the meaning of their columns."""

import importlib.util
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.merging import Record
from benchmarks.harness.tables import (
    GRAPHS,
    NETWORKS,
    OPERATIONS,
    SUITES,
    TITLES,
    WIDTH,
    ms,
    print_cases,
    ratio,
)

if TYPE_CHECKING:
    from rich.console import Console

#: Suites -> what their column shows of a time; of all suites, what the other columns show.
COLUMNS = {
    OPERATIONS: "x floor: time over the floor, the fewest bytes that must move (rows that noise "
    "touched are read once, a gradient is written once) at the bandwidth of a copy timed in the "
    "same rounds. Ours under autograd has a floor of its own: its backward reads the rows again",
    ("head", "small"): "x products: time over the fastest form of the bare matrix products on the "
    "touched rows",
    NETWORKS: "x network: time over that of the network alone (with backward and optimiser in "
    "training; without its head in a step of the preset)",
}
CYCLES = (
    "cyc/elem: cycles per touched element, time x threads x clock / elements of the rows that must "
    "be read; waiting for memory counts. The clock is measured: the C++ module times a chain of "
    "one-cycle instructions on every thread, after the timings of each case"
)
OTHERS = (
    "x eager, x compile: times faster than those rows; in brackets, than the fastest torch.compile "
    "row, whose rewritten form uses this package's algorithms as far as torch can express them "
    "(gradient written out, inverse CDF)",
    "extra MB: peak memory beyond what was there before the call, outputs included, but without "
    "the gradients where the line above the table has their size",
)
TORCH = {"eager": "eager torch", "compile": "torch.compile"}
GRAPH_COLUMNS = (
    "graph: the same call replayed as a CUDA graph; a dash where it cannot be captured (see the "
    "notes)",
    "wall: one call on an idle GPU until it is idle again, launching included",
)


def show(results: Record) -> None:
    """Print the tables, side by side where the terminal has room for both regimes.

    Without rich, print one line for each contender and regime.
    """
    if importlib.util.find_spec("rich") is None:
        print("\n".join(plain_lines(results)))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDTH)
    introduce(results, console)
    for about in results["environment"]["instruction_sets"]:
        own = [row for row in results["results"] if row["instruction_set"] == about["name"]]
        show_tables(own, console)
    if gains := ", ".join(reuse_gains(results["results"])):
        console.print()
        say(console, f"training step, fresh / reused time: {gains}")
    explain(results, console)


def show_tables(rows: list[Record], console: "Console") -> None:
    """Print the tables of one instruction set."""
    regimes = list(rows[0]["regimes"]) if rows else []
    groups = [regimes] if console.width >= WIDTH else [[regime] for regime in regimes]
    for chosen in groups:
        for suites in SUITES:
            part = [row for row in rows if row["suite"] in suites]
            if part:
                console.print()
                print_cases(part, chosen, console)


def say(console: "Console", text: str) -> None:
    """Print a paragraph; lines after its first are indented."""
    lines = textwrap.wrap(text, console.width, subsequent_indent="  ")
    console.print("\n".join(lines), highlight=False, markup=False)


def plain_lines(results: Record) -> Iterable[str]:
    """The same figures without rich: times, floor, ratios and cycles of every contender."""
    for row in results["results"]:
        for regime, t in row["regimes"].items():
            kernels = f", {row['instruction_set']}" if row["instruction_set"] else ""
            floor = f" of {ms(t['floor_ms'])} ms" if t["floor_ms"] else ""
            cycles = "" if t["cycles"] is None else f", cycles/element {ratio(t['cycles'])}"
            yield (
                f"{row['operation']}, {row['shape']}, {row['dtype']}{kernels}, {TITLES[regime]}: "
                f"{row['implementation']} {ms(t['median_ms'])} ms [{ms(t['p20_ms'])}-"
                f"{ms(t['p80_ms'])}], x floor {ratio(t['over_floor'])}{floor}{cycles}, "
                f"x eager {ratio(t['faster_than_eager'])}, "
                f"x compile {ratio(t['faster_than_compile'])}"
                + "".join(f", {name} {ms(t[name]['median_ms'])} ms" for name in GRAPHS if t[name])
            )
    for about in results["environment"]["instruction_sets"]:
        yield from set_lines(about)
    yield from (f"note: {remark}" for remark in results["remarks"])


def introduce(results: Record, console: "Console") -> None:
    """Print the machine, the versions, the settings and the remarks."""
    e, s = results["environment"], results["environment"]["settings"]
    where = e["gpu"] or f"{e['cpu']}, {e['threads']} threads of {e['cores']} cores"
    console.print()
    say(console, f"{where}; torch {e['torch']}, sedd_fast {e['sedd_fast']}; {e['date']}")
    for about in e["instruction_sets"]:
        for line in set_lines(about):
            say(console, line)
    t, noise = max(s["masked"], 0.01), ""
    if any(row["suite"] in OPERATIONS for row in results["results"]):
        noise = f"{100 * s['masked']:.0f} % of the positions noised (log-linear, t = {t:g}); "
    what = f"caches {s['caches']} before each call; median [20th-80th percentile] in milliseconds"
    say(console, noise + what)
    for remark in results["remarks"]:
        say(console, f"note: {remark}")


def set_lines(about: Record) -> Iterable[str]:
    """An instruction set with its clock and what torch uses beside it; then its bandwidths."""
    start = ""
    if about["name"]:
        start = f"{about['name']}, "
        clock, uses = about["clock_ghz"], about["torch_uses"] or {}
        what = [f"C++ kernels: {about['name']}"]
        what += [f"{TORCH[name]}: {used}" for name, used in uses.items() if used]
        what += [f"clock {clock:.2f} GHz, measured"] if clock else []
        yield "; ".join(what)
    for regime, found in about["bandwidth"].items():
        yield (
            f"{start}{TITLES[regime]}: copy {found['copy_gb_s']:.1f} GB/s (read + written), read "
            f"{found['read_gb_s']:.1f} GB/s; a copy that allocates: {found['allocating']:.1f} x "
            "the time"
        )


def reuse_gains(rows: list[Record]) -> Iterable[str]:
    """The speedup of a training step by memory reuse, where both regimes were measured."""
    for row in rows:
        times = row["regimes"]
        if row["suite"] == "train" and {"reused", "fresh"} <= times.keys():
            gain = times["fresh"]["median_ms"] / times["reused"]["median_ms"]
            yield f"{row['implementation']}: {gain:.2f}"


def explain(results: Record, console: "Console") -> None:
    """Print what the columns mean."""
    rows = results["results"]
    found = {row["suite"] for row in rows}
    lines = [text for suites, text in COLUMNS.items() if found & set(suites)]
    if any(t["cycles"] is not None for row in rows for t in row["regimes"].values()):
        lines.append(CYCLES)
    lines += OTHERS
    lines += GRAPH_COLUMNS * any("cuda" in row["regimes"] for row in rows)
    console.print()
    for line in [*lines, f"{results['environment']['seconds']:.0f} s in all"]:
        say(console, line)


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
