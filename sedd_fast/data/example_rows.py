"""Rows of prompts and completions in files of JSON lines, checked but not encoded.

A row is one of

    {"prompt": "2+2=", "completion": "4"}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

Other keys are ignored.
"""

import json
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sedd_fast.data.basic_tokenizers import utf8
from sedd_fast.data.chat_templates import check_messages, ends_with_assistant
from sedd_fast.data.files import read_text
from sedd_fast.data.json_lines import read_objects
from sedd_fast.data.sources import BUILT_IN, expand, is_hub_name

_FORM = '{"prompt": "2+2=", "completion": "4"}'
_FORMS = f'{_FORM} or {{"messages": [{{"role": "user", "content": "Hi"}}, ...]}}'

_EXPECTED = f"{_FORMS} on each line (data.format=text is for plain text)"


@dataclass(frozen=True)
class Row:
    """A row of a file: its prompt and completion, or its messages, and "FILE, line N"."""

    fields: dict[str, Any]
    where: str

    @property
    def contents(self) -> list[str]:
        """Its texts, without what a chat template would add."""
        messages = self.fields.get("messages")
        return [m["content"] for m in messages] if messages else list(self.fields.values())


def read_rows(source: str | Sequence[str], name: str = "data") -> list[Row]:
    """The rows of files of JSON lines, which errors call `name`, as :func:`read_examples`."""
    rows: list[Row] = []
    for given in [source] if isinstance(source, str) else source:
        if given in BUILT_IN or is_hub_name(given):
            to_null = f", or {name}=null to hold rows out" if name == "data.valid" else ""
            raise ValueError(
                f"{name}: {given!r} is no file here, and data.format=prompt_completion reads files "
                f"of JSON lines; give a .jsonl file{to_null}"
            )
        for path in expand(given):
            before = len(rows)
            for number, record in read_objects(read_text(path), str(path), _EXPECTED):
                where = f"{path}, line {number}"
                with named(where):
                    rows.append(Row(used_fields(record, completed=True), where))
            if len(rows) == before:
                raise ValueError(f"data: {path}: no rows; expected lines such as {_FORM}")
    return rows


def used_fields(record: dict[str, Any], completed: bool) -> dict[str, Any]:
    """What is used of a row, checked; null counts as missing. `completed`: with a completion."""
    fields = {
        name: value
        for name in ("prompt", "completion", "messages")
        if (value := record.get(name)) is not None
    }
    if "messages" in fields:
        if "completion" in fields:
            raise ValueError("both 'messages' and 'completion'; leave one of them out")
        fields.pop("prompt", None)  # some published data sets repeat the first message there
        check_messages(messages := fields["messages"])
        if completed and not ends_with_assistant(messages):
            role = reprlib.repr(messages[-1]["role"])
            raise ValueError(
                f"messages: the last one has the role {role}, expected 'assistant', whose message "
                "is the completion; leave what follows that out"
            )
        for message in messages:
            utf8(message["content"])
        if completed and not messages[-1]["content"]:
            raise ValueError("empty completion: the assistant's message has no content; add it")
        return fields
    needed = ("prompt", "completion") if completed else ("prompt",)
    if missing := [repr(name) for name in needed if name not in fields]:
        raise ValueError(f"no {' and no '.join(missing)}; expected {_FORMS}")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected text, got {reprlib.repr(value)}; put it in quotes")
        utf8(value)
    if completed and not fields["completion"]:
        raise ValueError(
            "empty completion; write the text that follows the prompt, or drop the row"
        )
    return fields


def looks_like_rows(text: str) -> bool:
    """Whether the first line of a text is a row of prompts and completions."""
    with suppress(ValueError, RecursionError):
        record = json.loads(text.lstrip().partition("\n")[0])
        return isinstance(record, dict) and bool(used_fields(record, completed=True))
    return False


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put "FILE, line N" in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
