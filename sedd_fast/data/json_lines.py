"""JSON lines: one JSON object on each line of a text."""

import json
from collections.abc import Iterator
from typing import Any


def read_objects(text: str, name: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a text, each with the number of its line from 1; empty lines are skipped.

    A line ends at a line feed and nowhere else: other separators, such as U+2028, may stand in a
    JSON string.

    Args:
        text: the lines.
        name: of the file, for error messages.
        example: an object as it is expected, for error messages.

    Raises:
        ValueError: a line is not JSON or holds no object; the message names the line.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where, expected = f"{name}, line {number}", f"expected an object such as {example}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error}); {expected}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {expected}, got {line.strip()[:40]}")
        yield number, record
