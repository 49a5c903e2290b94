"""What a model was trained to complete: the length of its completions, kept beside its weights."""

import json
from pathlib import Path

from sedd_fast.files.documents import read_json

#: In a directory of weights: {"completion_length": N}.
FILE = "completions.json"


def save_completion_length(directory: Path, length: int) -> None:
    """Write the number of tokens that completions were extended to in training."""
    (directory / FILE).write_text(json.dumps({"completion_length": length}) + "\n", "utf-8")


def load_completion_length(directory: str | Path) -> int | None:
    """The number that `save_completion_length` wrote; None where the directory has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    length = read_json(path).get("completion_length")
    if type(length) is not int or length < 1:
        raise ValueError(f"{path}: expected a completion_length of at least 1, got {length!r}")
    return length
