"""The SHA-256 sums of a set of files, in a text file beside them.

A line is 64 hexadecimal digits, two spaces and a name, as `sha256sum` writes it. A person can check
the files with `sha256sum -c model.sha256`, and write a new list after a change by hand.
"""

import hashlib
import re
from pathlib import Path

MODEL, TOKENIZER = "model.sha256", "tokenizer.sha256"

_LINE = re.compile(r"([0-9a-f]{64})  (\S(?:.*\S)?)")
_PIECE = 1 << 20  # bytes read at a time


def write_sums(directory: Path, sums: str) -> list[str]:
    """List every file below `directory` in its file `sums`; return the names, in order."""
    found = (file for file in directory.rglob("*") if file.is_file())
    names = sorted(file.relative_to(directory).as_posix() for file in found)
    lines = [f"{_sha256(directory / name)}  {name}\n" for name in names]
    (directory / sums).write_text("".join(lines), encoding="utf-8")
    return names


def verify(directory: Path, sums: str, *required: str) -> None:
    """Compare every file that `directory / sums` lists with its sum.

    Without that file nothing is compared: files of others have none.

    Args:
        directory: where the files are.
        sums: name of the list.
        required: names that the list must have.

    Raises:
        ValueError: a file is missing, differs or is not listed, or the list itself is damaged.
    """
    path = directory / sums
    if not path.is_file():
        return
    remedy = (
        f"take a copy that is whole; if you changed the files yourself, remove {path}, and they "
        "are read without being verified"
    )
    listed = _read(path, remedy)
    if missing := [name for name in required if name not in listed]:
        raise ValueError(f"{path} does not list {', '.join(missing)}: it is damaged; {remedy}")
    for name, digest in listed.items():
        file = directory / name
        if not file.is_file():
            raise ValueError(f"{file} is missing, but {path} lists it; {remedy}")
        if _sha256(file) != digest:
            raise ValueError(f"{file} is damaged: its SHA-256 is not that of {path}; {remedy}")


def _read(path: Path, remedy: str) -> dict[str, str]:
    """Name -> sum, of a list in which every line is right and no name is there twice."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    *lines, rest = text.split("\n")
    matches = [_LINE.fullmatch(line) for line in lines]
    listed = {match[2]: match[1] for match in matches if match}
    inside = not any(name.startswith("/") or ".." in Path(name).parts for name in listed)
    if rest or not lines or len(listed) != len(lines) or not inside:
        raise ValueError(f"{path} is damaged: it is not a list of SHA-256 sums; {remedy}")
    return listed


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
