"""An error as one line on stderr, with the remedy, and the exit code that goes with it."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import typer

from sedd_fast.train.progress import NonFiniteLossError

#: typer carries click inside or beside it, as the version has it; this is its base of usage errors.
UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
#: What a person can mend: a wrong value, a missing file, a run that diverged.
EXPECTED = (ValueError, TypeError, OSError, NonFiniteLossError)

#: What says that memory has run out: torch raises a RuntimeError for it on a CPU.
_NO_MEMORY = ("can't allocate memory", "out of memory")

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
DEBUG = "SEDD_FAST_DEBUG"


def is_expected(error: Exception) -> bool:
    """Whether a person can mend it, so that a line says more than a traceback."""
    return isinstance(error, (UsageError, *EXPECTED)) or _is_out_of_memory(error)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def report(error: BaseException) -> int:
    """Write the error's line; return the exit code."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if _is(error, "NoArgsIsHelpError"):  # the help has been printed
        return 0
    if isinstance(error, UsageError):
        return say(_usage(error), BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        return say(str(error) or "interrupted", INTERRUPTED)
    if isinstance(error, NonFiniteLossError):
        return say(str(error), FAILED)
    if _is_out_of_memory(error):
        return say("out of memory; make batch, length or model smaller", FAILED)
    return say(_text(error), BAD_INPUT)


def refuse_given(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Refuse the options of parameters `names` that the command line gives.

    Raises:
        ValueError: an option that would do nothing, which says `why`.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name != "DEFAULT":
            raise ValueError(f"{parameter.opts[0]}: {why}; leave it out")


def say(message: str, code: int) -> int:
    """One line on stderr, whatever line breaks the message has; returns `code`."""
    line = " ".join(message.split())
    red, plain = ("\033[1;31m", "\033[0m") if _coloured() else ("", "")
    sys.stderr.write(f"{red}sedd-fast:{plain} {line}\n")
    sys.stderr.flush()
    return code


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return str(error) or type(error).__name__


def _usage(error: Any) -> str:
    """typer's message, with the close matches and where to read on."""
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    remedy = f"see {context.command_path} --help" if context else "see sedd-fast --help"
    if option := getattr(error, "option_name", None) if _is(error, "NoSuchOption") else None:
        return f"no such option: {option}; {_did_you_mean(option, _options(context))}{remedy}"
    if message.startswith("No such command"):
        given = message.split("'")[1]
        names = list(context.command.commands) if context else []
        close = _did_you_mean(given, names) or f"commands are {', '.join(names)}; "
        return f"no such command: {given}; {close}{remedy}"
    return f"{message[:1].lower()}{message[1:]}; {remedy}"


def _is(error: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _options(context: Any) -> list[str]:
    if context is None:
        return []
    every = [name for p in context.command.params for name in (*p.opts, *p.secondary_opts)]
    return [*(name for name in every if name.startswith("-")), "--help"]


def _did_you_mean(given: str, names: list[str]) -> str:
    close = difflib.get_close_matches(given, names, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ
