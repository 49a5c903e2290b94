"""JSON lines: one JSON object on each line of a text."""

import json
from collections.abc import Iterator
from typing import Any

from sedd_fast.data.files import split_lines

_DEPTH = 100  # levels of lists and objects within a line


def read_objects(text: str, name: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a text, each with the number of its line from 1; empty lines are skipped.

    A line ends at a line feed and nowhere else: other separators, such as U+2028, may stand in a
    JSON string.

    Args:
        text: the lines.
        name: of the file, for error messages.
        example: an object as it is expected, for error messages.

    Raises:
        ValueError: a line is not JSON, is nested too deeply or holds no object; the message names
            the line.
    """
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        where, expected = f"{name}, line {number}", f"expected an object such as {example}"
        try:
            record = json.loads(line)
            deep = line.count("[") + line.count("{") > _DEPTH and _depth(record) > _DEPTH
        except RecursionError:
            record, deep = None, True
        except ValueError as error:  # JSONDecodeError, or an integer of too many digits
            raise ValueError(f"{where}: not JSON ({error}); {expected}") from error
        if deep:
            raise ValueError(
                f"{where}: lists or objects nested more than {_DEPTH} deep; {expected}"
            )
        if not isinstance(record, dict):
            raise ValueError(f"{where}: {expected}, got {line.strip()[:40]}")
        yield number, record


def _depth(value: Any) -> int:
    """How deep lists and objects are nested in a JSON value, without recursion."""
    depth, level = 0, [value]
    while nested := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [
            item for each in nested for item in (each.values() if type(each) is dict else each)
        ]
    return depth
