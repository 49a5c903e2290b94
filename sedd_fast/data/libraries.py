"""Errors of other libraries in our own words."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained(what: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of `kinds` into a ValueError: what failed, the first line, the remedy."""
    try:
        yield
    except kinds as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{what} ({cause}); {remedy}") from error
