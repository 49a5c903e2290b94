"""JSON and YAML from anyone: strict, of bounded size and depth, errors in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

#: Values in a YAML document with every alias replaced by what it stands for, and their depth.
_MOST_VALUES, _MOST_LEVELS = 10_000, 50
_TAGS = "tag:yaml.org,2002:"
_NULL = ("", "~", "null", "Null", "NULL")


class _Loader(yaml.SafeLoader):
    """YAML 1.1, in which 1e-3 is a number also without a point; of bounded depth."""

    level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.level += 1
        _check_level(self.level)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


_Loader.add_implicit_resolver(
    f"{_TAGS}float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)

#: Whether the value under these keys is text, whatever it looks like.
IsText = Callable[[tuple[str, ...]], bool]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it is no JSON in UTF-8, no object, has a key twice, or NaN or Infinity.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"),
            object_pairs_hook=_each_key_once,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: list[str]) -> None:
    """ValueError for a key that is there twice: one of its values would be lost."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {key!r} is there twice")
        seen.add(key)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def read_yaml(path: Path, is_text: IsText = lambda keys: False) -> Any:
    """The YAML document in a file; see `parse_yaml`.

    Raises:
        ValueError: it is no YAML in UTF-8; the message does not name the file.
        OSError: it cannot be read.
    """
    return parse_yaml(path.read_text(encoding="utf-8-sig"), is_text)


def parse_yaml(text: str, is_text: IsText = lambda keys: False) -> Any:
    """One YAML document as plain data; None where there is none.

    Where `is_text` says so, a scalar is its text (`no`, `1984` and `2001-01-01` included) and an
    unquoted null is None; elsewhere YAML 1.1 decides what it is.

    Raises:
        ValueError: it is not valid YAML, has a key twice, or is too large or too deeply nested.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _size(root, {})
            return _construct(loader, root, (), is_text)
        finally:
            loader.dispose()
    except Exception as error:  # PyYAML raises more than YAMLError for a value with a wrong tag
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check_level(level: int) -> None:
    if level > _MOST_LEVELS:
        raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


def _size(node: yaml.Node, known: dict[int, int], level: int = 0) -> int:
    """The number of values below a node, where an alias counts as all that it stands for."""
    _check_level(level)  # an alias may stand for what it is in
    if id(node) not in known:
        below = [node.value] if isinstance(node, yaml.MappingNode) else []
        children = [child for pairs in below for pair in pairs for child in pair]
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_size(child, known, level + 1) for child in children)
    if known[id(node)] > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES} values")
    return known[id(node)]


def _construct(
    loader: yaml.SafeLoader, node: yaml.Node, keys: tuple[str, ...], is_text: IsText
) -> Any:
    standard = node.tag in (f"{_TAGS}map", f"{_TAGS}seq")
    if not standard and (not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(_TAGS)):
        raise ValueError(f"{node.tag} is not supported; quote text that starts with !")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, keys, is_text) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        if any(not isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise ValueError("a key must be text")
        _check_keys([key.value for key, _ in node.value])
        loader.flatten_mapping(node)  # "<<: *defaults"
        pairs = [(key.value, value) for key, value in node.value]
        return {key: _construct(loader, value, (*keys, key), is_text) for key, value in pairs}
    if not is_text(keys):
        return loader.construct_object(node)
    return None if node.style is None and node.value in _NULL else node.value
