"""Progress bars of long calls, on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def tracked(items: Iterable[T], label: str, shown: bool) -> Iterable[T]:
    """The items, with a progress bar on stderr if ``shown``."""
    if not shown:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=label, console=Console(stderr=True), transient=True)
