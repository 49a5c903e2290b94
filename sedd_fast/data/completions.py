"""The lengths of the completions that a model was trained on, kept beside its weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sedd_fast.files.documents import read_json

FILE = "completions.json"  # in a directory of weights


@dataclass(frozen=True)
class CompletionLengths:
    """Numbers of tokens, end-of-text included.

    Attributes:
        extended_to: shorter completions were extended to so many in training.
        longest: that of the longest completion in training, extended: the gap that is sampled.
    """

    extended_to: int
    longest: int

    def save(self, directory: Path) -> None:
        """Write them into a directory."""
        (directory / FILE).write_text(json.dumps(asdict(self)) + "\n", "utf-8")


def load_completion_lengths(directory: str | Path) -> CompletionLengths | None:
    """What `save` wrote; None where the directory has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    found = read_json(path)
    lengths: dict[str, Any] = {name: found.get(name) for name in ("extended_to", "longest")}
    if not all(type(length) is int and length >= 1 for length in lengths.values()):
        raise ValueError(f"{path}: expected extended_to and longest of at least 1, got {lengths}")
    return CompletionLengths(**lengths)
