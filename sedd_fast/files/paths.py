"""Paths as a user writes them."""

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~USER replaced by the home directory.

    Raises:
        ValueError: there is no such user, or the home directory cannot be found.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path}: no home directory is known for {Path(path).parts[0]}; give the whole path, "
            "from / on"
        ) from error
