"""How far a piece of work is: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sedd_fast.cli.output import progress

_LINE_SECONDS = 10.0

Report = Callable[[int, int], None]


@contextmanager
def counted(label: str, unit: str) -> Iterator[Report]:
    """A function to call with (how many are done, how many there are), on stderr.

    Example:
        >>> with counted("sampling", "steps") as report:
        ...     report(1, 128)
    """
    console = progress()
    if not console.is_terminal:
        yield _Lines(label, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(complete_style="cyan"),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.next = time.monotonic() + _LINE_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + _LINE_SECONDS
            line = f"{self.label}: {done:,} of {total:,} {self.unit}"
            progress().print(line, soft_wrap=True, markup=False)
