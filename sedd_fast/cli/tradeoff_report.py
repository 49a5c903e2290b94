"""Shows the record of `sedd-fast tradeoff` as a table and a few sentences."""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sedd_fast.cli.output import pairs, results
from sedd_fast.evaluate.tradeoff import LABELS


def show(record: dict[str, Any], files: list[str]) -> None:
    """Print what was compared, every point, and where SEDD matches the baseline."""
    console = results()
    about = {name: str(record[name]) for name in ("model", "baseline", "network", "held_out")
             if record.get(name)}  # fmt: skip
    about["drawn"] = (
        "{num_samples} samples of {length} tokens for each point, {batch_size} at a time, "
        "seed {seed}"
    ).format(**record)
    console.print(pairs(about, ("dim", "")))
    console.print(_table(record), soft_wrap=False)
    for line in _verdicts(record):
        console.print(line, soft_wrap=True)
    for name, reason in record["left_out"].items():
        console.print(f"{name} was left out: {reason}", style="dim", soft_wrap=True)
    console.print(pairs({file: "" for file in files}, ("cyan", "dim")))


def _table(record: dict[str, Any]) -> Table:
    shown = [name for name in LABELS if name in (record["real_text"] or {})]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("sampler", no_wrap=True)
    for name in ("steps", "rows/sample", "s/sample", *shown):
        table.add_column(name, justify="right")
    for point in (*record["points"], *record["baselines"]):
        figures = (f"{point['metrics'][name]:.3f}" for name in shown)
        table.add_row(
            point["sampler"], str(point["steps"]), f"{point['rows']:.1f}",
            f"{point['seconds']:.4f}", *figures,
        )  # fmt: skip
    if shown:
        real = (f"{record['real_text'][name]:.3f}" for name in shown)
        table.add_row("real text", "", "", "", *real, style="dim")
    return table


def _verdicts(record: dict[str, Any]) -> Iterator[str]:
    for baseline in record["baselines"]:
        for name, point in record["as_fast"][baseline["sampler"]].items():
            if point is None:
                yield f"{name} takes longer than {baseline['sampler']} at any number of steps."
                continue
            yield (
                f"{name} takes no longer than {baseline['sampler']} at {point['steps']} steps, the "
                f"largest measured number of steps for which this holds: {point['seconds']:.3f} s "
                f"against {baseline['seconds']:.3f} s per sample."
            )
        for name, point in record["matches"].get(baseline["sampler"], {}).items():
            if point is None:
                yield f"{name} is never as near to real text as {baseline['sampler']}."
                continue
            ratio = baseline["seconds"] / point["seconds"]
            yield (
                f"{name} is as near to real text as {baseline['sampler']} from {point['steps']} "
                f"steps on, {ratio:.2f} times as fast ({record['metric']})."
            )
