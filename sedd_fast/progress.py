"""Progress of long calls on stderr: a bar on a terminal, a line every ten seconds elsewhere."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from sedd_fast.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS = 10.0

T = TypeVar("T")
Report = Callable[[int, int], object]


def is_main_process() -> bool:
    """Whether this is the first process of torchrun or `accelerate launch`, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def stderr_console() -> "Console":
    """A console on stderr that prints in the main process only."""
    return console(stderr=True, quiet=not is_main_process())


@contextmanager
def counted(label: str, unit: str = "") -> Iterator[Report]:
    """A function to call with the number of units done and their total.

    Example:
        >>> with counted("sampling", "steps") as report:
        ...     report(1, 128)
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    on_stderr = stderr_console()
    if not (on_stderr.is_terminal or on_stderr.is_jupyter):
        last = time.monotonic()

        def print_line(done: int, total: int) -> None:
            nonlocal last
            if (now := time.monotonic()) >= last + LINE_SECONDS:
                last = now
                line = f"{label}: {done:,} of {total:,} {unit}".rstrip()
                on_stderr.print(line, soft_wrap=True)

        yield print_line
        return
    bar = BarColumn(complete_style="cyan")
    columns = ("{task.description}", bar, MofNCompleteColumn(), unit, TimeRemainingColumn())
    with Progress(*columns, console=on_stderr, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def reported(progress: bool | Report, label: str, unit: str = "") -> AbstractContextManager[Report]:
    """As `counted` where `progress` is True; where it is a function, that one; else nothing."""
    if callable(progress):
        return nullcontext(progress)
    return counted(label, unit) if progress else nullcontext(lambda done, total: None)


def tracked(items: Sequence[T], label: str, shown: bool) -> Iterator[T]:
    """The items; if `shown`, with the number of those that the caller has finished."""
    if not shown:
        yield from items
        return
    with counted(label) as report:
        for done, item in enumerate(items, start=1):
            yield item
            report(done, len(items))
