"""What goes where: results to stdout, everything about progress to stderr."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sedd_fast.progress import stderr_console


def writable(path: Path | None) -> Path | None:
    """A path that a file can be written to, found out before the work and not after it.

    Raises:
        ValueError: its folder is not there, it is a folder itself, or it may not be written.
    """
    if path is None:
        return None
    path = path.expanduser()
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: may not be written; check its permissions")
    return path


def creatable(folder: Path | None) -> Path | None:
    """A folder that is there, or can be made, and may be written to; ValueError otherwise."""
    if folder is None:
        return None
    folder = folder.expanduser()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{folder}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{folder}: {nearest} may not be written; check its permissions")
    return folder


SaveTo = Annotated[
    Path | None,
    typer.Option(
        "--save",
        callback=writable,
        metavar="FILE.json",
        help="Write every setting and figure into a file.",
        show_default=False,
    ),
]
#: A model may write any character; on a terminal these would act instead of being shown.
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


#: Where a command reports its progress.
progress = stderr_console


def results() -> Console:
    """Where a command's result goes."""
    return Console(highlight=False, soft_wrap=True)


def write_json(record: dict[str, Any]) -> None:
    """One JSON object as one line on stdout."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def save_json(record: dict[str, Any], path: Path) -> None:
    """One JSON object into a file, for people to read too."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def show_text(text: str, given: list[tuple[int, int]] | None = None) -> None:
    """A drawn text on stdout; on a terminal, what was given is bold.

    Args:
        text: written to a pipe or a file exactly as it is, and a line break.
        given: character ranges [start, stop).
    """
    console = results()
    if not console.is_terminal:
        sys.stdout.write(text + "\n")
        return
    console.print(marked(text, given or []))


def marked(text: str, given: list[tuple[int, int]]) -> Text:
    """The text for a terminal: given ranges bold, control characters as symbols."""
    shown = Text(text.translate(_CONTROL), overflow="fold")
    for start, stop in given:
        shown.stylize("bold cyan", start, stop)
    return shown


def heading(title: str) -> None:
    """A line above a text: a rule on a terminal, plain elsewhere."""
    console = results()
    if console.is_terminal:
        console.rule(Text(title, style="dim"), align="left", style="dim")
    else:
        sys.stdout.write(f"=== {title} ===\n")


def pairs(rows: dict[str, str], styles: tuple[str, str], width: int = 0) -> Text:
    """Two columns, never cut or wrapped: paths and commands must survive a narrow terminal."""
    width = max(width, *map(len, rows))
    lines = (
        Text.assemble(("  " + left.ljust(width + 3), styles[0]), (right, styles[1]))
        for left, right in rows.items()
    )
    return Text("\n").join(lines)
