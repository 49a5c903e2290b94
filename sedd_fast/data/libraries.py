"""Errors of other libraries in our own words: one that is missing, one that cannot load a name."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_library(name: str, package: str, user: str) -> Any:
    """The module `name`.

    Args:
        name: of the module.
        package: that pip installs it from.
        user: what needs the library, for the message.

    Raises:
        ValueError: it is not installed; the message has the pip command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{user} needs the {package} library: pip install {package}") from error


@contextmanager
def explained(what: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of `kinds` into a ValueError: what failed, the first line, the remedy."""
    try:
        yield
    except kinds as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{what} ({cause}); {remedy}") from error
