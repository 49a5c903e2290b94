"""The value of a setting that is text, as the command line gives it.

my #1 book.txt       itself; so are 1984, no, *.txt, {a}.txt and cost${x}.txt
[a.txt,b.txt]        a list, where the setting takes one; its items are text as well
'[a].txt' "a, b"     the text between the quotes, in YAML's notation
null                 no value; so is nothing at all
"""

import re

from sedd_fast.files.documents import parse_yaml

_QUOTED = r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(rf"(?:\s*({_QUOTED})\s*|([^,\[\]]*))(?:,|$)", re.DOTALL)  # in linear time


def text_value(value: str, lists: bool) -> str | list[str] | None:
    """What the text after "=" stands for; `lists`: the setting takes a list of texts.

    Raises:
        ValueError: a list that is not closed.
    """
    if value in ("", "null"):
        return None
    if re.fullmatch(_QUOTED, value, re.DOTALL):
        return _unquoted(value)
    if not lists or not value.startswith("["):
        return value
    if "]" not in value:
        raise ValueError("the list is not closed; quote a name that starts with [, as in '[a'")
    items = _items(value[1:-1]) if value.endswith("]") else None
    return value if items is None else items


def _items(text: str) -> list[str] | None:
    """The items between the brackets of a list; None for text such as [draft] a [2]."""
    items, at = [], 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            return None
        items.append(_unquoted(match[1] or match[2].strip()))
        at = match.end()
    return items


def _unquoted(text: str) -> str:
    if re.fullmatch(_QUOTED, text, re.DOTALL) is None:
        return text
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return str(parse_yaml(text, lambda keys: True))
