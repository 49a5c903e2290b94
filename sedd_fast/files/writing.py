"""Writing files so that each appears whole or not at all, and a full disk is an OSError."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sedd_fast.files.checksums import write_sums


def replace_file(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Write a file by `write_to(another path)`; under its own name it appears whole.

    Raises:
        OSError: it cannot be written, for example because the disk is full. A file of that name
            is then unchanged, and nothing else is left.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with as_os_error(path):
            write_to(unfinished)
            flush(unfinished)
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, flushed to the disk; a file of that name is replaced at once."""
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_files(directory: Path, sums: str, fill: Callable[[Path], Any]) -> None:
    """Write the files that `fill(folder)` makes into `directory`, and the list `sums` of them.

    All are first written to a folder of their own. Then the old list is removed, the files are
    renamed one by one, and the new list comes last: wherever that is cut short there is no list,
    so that it never refuses a file that is whole.

    Raises:
        OSError: they cannot be written. Before the first is renamed, `directory` is unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    staged = directory / f".{sums}.tmp"
    if staged.exists():  # of a process that was killed
        shutil.rmtree(staged)
    staged.mkdir()
    try:
        with as_os_error(directory):
            fill(staged)
            names = write_sums(staged, sums)
            for name in (*names, sums):
                flush(staged / name)
            (directory / sums).unlink(missing_ok=True)
            flush(directory)
            for name in (*names, sums):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged / name, directory / name)
            for folder in sorted(staged.rglob("*"), reverse=True):
                folder.rmdir()
            staged.rmdir()
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    flush(directory)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Raise what libraries raise where a write fails as the OSError that was its cause.

    torch raises RuntimeError; safetensors and tokenizers raise errors of their own with the
    system's number in the text.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:  # as of a write to an open file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        if re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy keeps no number
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _error_number(error: Exception) -> int | None:
    """The system's number of a failed write; None for an error of another kind."""
    text = str(error)
    if named := re.search(r"\bos error (\d+)", text):
        return int(named[1])
    if "inline_container" not in text and "PytorchStreamWriter" not in text:
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return (cause.errno if cause is not None else None) or errno.EIO
