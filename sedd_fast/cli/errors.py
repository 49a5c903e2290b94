"""An error as one line on stderr, with the remedy, and the exit code that goes with it."""

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import typer

from sedd_fast.terminal import visible, write

#: The base class of usage errors. Its module depends on the version of typer.
UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
#: Errors that the user can correct: a wrong option or value, a missing file. So are those with an
#: `exit_code`, such as a diverged training's: their classes need not be imported here.
EXPECTED = (UsageError, ValueError, TypeError, OSError)

#: Numbers of the errors of a disk, or of the user's share of it, that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Parts of the RuntimeError that torch raises when memory runs out.
_NO_MEMORY = ("can't allocate memory", "out of memory")

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
DEBUG = "SEDD_FAST_DEBUG"


def is_expected(error: Exception) -> bool:
    """Whether the user can correct the error, so that one line says more than a traceback."""
    return isinstance(error, EXPECTED) or hasattr(error, "exit_code") or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    by_torch = isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)
    return by_torch or isinstance(error, MemoryError)


def _is_of_full_disk(error: BaseException) -> bool:
    """Whether a full disk caused the error: a library may explain it by an error of its own."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in _FULL:
        cause = cause.__cause__
    return cause is not None


def report(error: BaseException) -> int:
    """Write the error as one line; return the exit code."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        write(visible("".join(traceback.format_exception(error))), sys.stderr)
    if isinstance(error, UsageError) and type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())  # type: ignore[attr-defined]  # the help
        return 0
    code = BAD_INPUT
    if isinstance(error, KeyboardInterrupt):
        message, code = str(error) or "interrupted", INTERRUPTED
    elif isinstance(error, UsageError):
        message = _usage(error)
    elif hasattr(error, "exit_code"):
        message, code = str(error), error.exit_code
    elif _is_out_of_memory(error):
        message, code = "out of memory; make batch, length or model smaller", FAILED
    elif isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or "the output"
        message = f"{where}: {error.strerror}; make room there, or name another place"
        code = FAILED
    elif isinstance(error, OSError) and error.strerror and error.filename:
        message = f"{error.filename}: {error.strerror}; check the path and its permissions"
    else:
        message = str(error) or type(error).__name__
        code = FAILED if _is_of_full_disk(error) else BAD_INPUT
    warn(message)
    return code


def warn(message: str) -> None:
    """Write one line to stderr, whatever line breaks and control characters the message has."""
    stream = sys.stderr
    if stream is None:
        return
    coloured = stream.isatty() and "NO_COLOR" not in os.environ
    red, plain = ("\033[1;31m", "\033[0m") if coloured else ("", "")
    with suppress(OSError):  # stderr is closed: the exit code says it
        write(f"{red}sedd-fast:{plain} {visible(' '.join(message.split()))}\n", stream)


def _usage(error: Any) -> str:
    """The message of typer, with the command whose help says more."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace(": Value error, ", ": ")  # what some versions put before the reason
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "sedd-fast"
    if message.startswith("No such command") and not message.endswith("?") and context:
        message += f"; commands are {', '.join(context.command.commands)}"
    end = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{end} see {command} --help"
