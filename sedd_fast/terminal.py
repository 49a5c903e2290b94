r"""Output of any text: on a terminal without its control characters, in a pipe as it is.

A model may draw any character, and names of files, settings and tensors may hold any. A terminal
would obey some of them instead of showing them.

    visible(text)        control characters as escapes: "\x1b" becomes the four characters \x1b
    console(...)         a console of `rich` that shows all text so
    symbol(...)          a symbol of our own that any encoding has
    write(text)          text to stdout, with escapes for what its encoding lacks
    write_json(text)     JSON to stdout, always in UTF-8
    prepared()           stdout and stderr while a command runs
"""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: C0 but line feed and tab, DEL and C1; marks and overrides of the direction of writing, which can
#: reorder a line; surrogates without their pair, which no encoding has.
_HIDDEN = [
    *(code for code in chain(range(0x20), range(0x7F, 0xA0)) if chr(code) not in "\n\t"),
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
    *range(0xD800, 0xE000),
]
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _HIDDEN}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _HIDDEN}


def visible(text: str) -> str:
    r"""The text with an escape in place of each control character.

    >>> print(visible("a\x9b1m \u202eb"))
    a\x9b1m \u202eb
    """
    return text.translate(_ESCAPES)


def console(stderr: bool = False, **options: Any) -> "Console":
    """A console of `rich` for text of any origin: strings are neither markup nor emoji codes.

    On stderr and on a terminal text is shown as by `visible`. Characters that the encoding lacks
    are escapes too.
    """
    return _console_class()(stderr=stderr, highlight=False, markup=False, emoji=False, **options)


@functools.cache
def _console_class() -> type["Console"]:
    from rich.console import Console
    from rich.segment import Segment

    class EscapingConsole(Console):
        def render(self, *args: Any, **options: Any) -> Iterable[Segment]:
            shown = visible if self.stderr or self.is_terminal else str
            for segment in super().render(*args, **options):
                if not segment.control:
                    segment = segment._replace(text=_encodable(shown(segment.text), self.file))
                yield segment

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # where `rich` would exit

    return EscapingConsole


def symbol(wanted: str, plain: str) -> str:
    """The symbol `wanted`, or `plain` where the encoding of stdout lacks it."""
    return wanted if _encodable(wanted, sys.stdout) == wanted else plain


def write(text: str, stream: TextIO | None = None) -> None:
    """Write text to stdout, or to another stream; escapes stand for what its encoding lacks."""
    stream = stream or sys.stdout
    if stream is not None:
        stream.write(_encodable(text, stream))
        stream.flush()


def write_json(line: str) -> None:
    r"""Write a line of JSON to stdout, in UTF-8 whatever the encoding of stdout.

    A terminal gets control characters as JSON's own escapes (\u009b), which mean the same.
    """
    stream = sys.stdout
    if stream is None:
        return
    if stream.isatty():
        line = line.translate(_JSON_ESCAPES)
    stream.flush()
    if (raw := getattr(stream, "buffer", None)) is None:
        stream.write(line + "\n")
        return
    # A surrogate without its pair can only be within a string, where \ud800 is JSON.
    raw.write(f"{line}\n".encode("utf-8", "backslashreplace"))
    raw.flush()


def _encodable(text: str, stream: Any) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def prepared() -> Iterator[None]:
    """Let nothing that is printed fail for its characters; show warnings and logs as `visible`.

    Streams, warnings and logging are as before at the end.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    handlers = [stream.errors for stream in streams]
    format_warning, format_record = warnings.formatwarning, logging.StreamHandler.format
    for stream in streams:
        with suppress(OSError):  # it is flushed first, and may be closed
            stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda *args, **given: visible(format_warning(*args, **given))

    def visible_record(self: logging.Handler, record: logging.LogRecord) -> str:
        line = format_record(self, record)
        return line if isinstance(self, logging.FileHandler) else visible(line)

    # The class, not the handlers: libraries add their own where they are imported.
    logging.StreamHandler.format = visible_record  # type: ignore[method-assign]
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        logging.StreamHandler.format = format_record  # type: ignore[method-assign]
        flush()
        for stream, handler in zip(streams, handlers, strict=True):
            with suppress(OSError):  # it is flushed first, and may be closed
                stream.reconfigure(errors=handler)


def flush() -> bool:
    """Flush stdout and stderr; False where one is closed or full, which then takes no more text."""
    done = True
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            done = False
            # What is left in the buffer would fail again when Python exits.
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return done
