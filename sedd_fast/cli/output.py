"""Where a command writes: results to stdout, progress to stderr, records into files."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sedd_fast import terminal
from sedd_fast.files.paths import expanded
from sedd_fast.files.writing import as_os_error
from sedd_fast.progress import stderr_console


def writable(path: Path | None) -> Path | None:
    """The path, if a file can be written to it: checked before the work and not after it.

    Raises:
        ValueError: its folder does not exist, it is a folder itself, or it may not be written.
    """
    if path is None:
        return None
    path = expanded(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: may not be written; check its permissions")
    return path


def creatable(folder: Path | None) -> Path | None:
    """The folder, if it may be written to or can be made; ValueError otherwise."""
    if folder is None:
        return None
    folder = expanded(folder)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{folder}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{folder}: {nearest} may not be written; check its permissions")
    return folder


#: The console that a command writes its progress to.
progress = stderr_console


def results() -> Console:
    """The console that a command writes its result to."""
    return terminal.console(soft_wrap=True)


def write_json(record: dict[str, Any]) -> None:
    """Write one JSON object as one line to stdout."""
    terminal.write_json(_dumps(record))


def save_json(record: dict[str, Any], path: Path) -> None:
    """Write one JSON object into a file, indented for a reader."""
    text = _dumps(record, indent=2) + "\n"
    # A surrogate without its pair, as in the name of a file, is an escape within a JSON string.
    with as_os_error(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _dumps(record: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    """None in place of infinity and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        record: every setting and figure, for JSON.
        about: name -> what was done, for a reader.
        figures: name -> figure, for a reader.
    """

    record: dict[str, Any]
    about: dict[str, str]
    figures: dict[str, str]

    def write(self, save: Path | None, as_json: bool) -> None:
        """Write the record to the file `save` if any, and the record or a table to stdout."""
        if save is not None:
            save_json(self.record, save)
        if as_json:
            write_json(self.record)
            return
        width = max(map(len, (*self.about, *self.figures)))
        results().print(pairs(self.about, ("dim", ""), width))
        results().print()
        results().print(pairs(self.figures, ("dim", "bold"), width))


def figure(value: float, error: float = math.nan, digits: int = 3) -> str:
    """A number with its standard error, if that is known and not 0."""
    if not math.isfinite(value):
        return "infinite"
    shown = f"{value:.{digits}f}"
    if not (math.isfinite(error) and error):
        return shown
    return f"{shown} {terminal.symbol('±', '+-')} {error:.{digits}f}"


def show_text(text: str, given: list[tuple[int, int]]) -> None:
    """Write a sample to stdout; on a terminal, the text that was given is bold.

    Args:
        text: written to a pipe or a file unchanged, with a line break after it; on a terminal
            control characters are escapes.
        given: character ranges [start, stop) of the text that was given, ascending.
    """
    console = results()
    if not console.is_terminal:
        terminal.write(text + "\n")
        return
    shown, at = Text(overflow="fold"), 0
    for start, stop in given:
        start = max(at, start)
        shown.append(terminal.visible(text[at:start]))
        at = max(start, stop)
        shown.append(terminal.visible(text[start:at]), "bold cyan")
    console.print(shown.append(terminal.visible(text[at:])))


def heading(title: str) -> None:
    """Write a line above a text: a rule on a terminal, plain text elsewhere."""
    console = results()
    if console.is_terminal:
        console.rule(Text(title, style="dim"), align="left", style="dim")
    else:
        terminal.write(f"=== {title} ===\n")


def pairs(rows: dict[str, str], styles: tuple[str, str], width: int = 0) -> Text:
    """Two columns, never cut or wrapped: paths and commands stay whole on a narrow terminal."""
    width = max(width, *map(len, rows))
    lines = (
        Text.assemble(("  " + left.ljust(width + 3), styles[0]), (right, styles[1]))
        for left, right in rows.items()
    )
    return Text("\n").join(lines)
