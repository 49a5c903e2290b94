"""JSON and YAML from anyone: what is read, and one line for what is not."""

import pytest

from sedd_fast.files.documents import parse_yaml, read_json, read_yaml

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[]", "must hold a JSON object, got list"),
        (b"null", "must hold a JSON object, got NoneType"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
    ],
)
def test_wrong_json_gets_one_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "more than 50 levels"),
        ("{" * 200_000, "more than 50 levels"),
        ("- " * 5_000, "more than 50 levels"),
        ("[" * 60 + "]" * 60, "more than 50 levels"),
        (LAUGHS, "more than 10000 values"),
        ("&a [*a]", "more than 50 levels"),
        ("a: &a\n  <<: *a", "more than 50 levels"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("a: !!python/object/apply:os.system [ls]", "not supported"),
        ("a: !!set {b}", "not supported"),
        ("a: !!int x", "invalid literal"),
        ("a: !!bool x", "x"),
        ("a: 2001-99-99", "month"),
        ("a: [", "expected the node content"),
        ("a: *b", "undefined alias"),
        ("--- 1\n--- 2", "single document"),
        ("\x00", "special characters"),
    ],
)
def test_wrong_yaml_gets_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_yaml_is_read(tmp_path):
    text = (
        "\ufeffx: &x {a: 1e-3, b: [1, yes, ~]}\ny: {<<: *x, a: 2}\nt: {a: no, b: [1984, ~, '~']}\n"
    )
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    read = read_yaml(tmp_path / "a.yaml", lambda keys: keys[0] == "t")
    shared = [1, True, None]
    assert read["x"] == {"a": 1e-3, "b": shared}
    assert read["y"] == {"a": 2, "b": shared}
    assert read["t"] == {"a": "no", "b": ["1984", None, "~"]}
    assert parse_yaml("# nothing") is None
