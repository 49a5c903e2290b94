import json

import pytest

from sedd_fast.data.json_lines import read_objects


def read(text):
    return list(read_objects(text, "some.jsonl", '{"text": "a"}'))


def test_numbers_of_lines_and_empty_lines():
    assert read('{"text": "a"}\n\n  \n{"text": "b"}') == [(1, {"text": "a"}), (4, {"text": "b"})]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_separator_within_a_string_ends_no_line(separator):
    record = {"text": f"one{separator}two"}
    line = json.dumps(record, ensure_ascii=False)
    assert read(f"{line}\n{line}\n") == [(1, record), (2, record)]


@pytest.mark.parametrize(
    ("line", "message"),
    [("the cat", "some.jsonl, line 2: not JSON"), ("[1]", "line 2: expected an object such as")],
)
def test_the_wrong_line_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        read('{"text": "a"}\n' + line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 200_000, "line 2: lists or objects nested more than 100 deep"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "line 2: lists or objects nested more than 100"),
        ('{"a": 1' + "0" * 5000 + "}", "line 2: not JSON .*digits"),
    ],
)
def test_lines_that_no_parser_should_meet(line, message):
    with pytest.raises(ValueError, match=message):
        read('{"text": "a"}\n' + line)
    flat = {"a": [[1, 2]] * 500 + ["[" * 500]}  # many lists, and brackets in a text
    assert read(json.dumps(flat)) == [(1, flat)]
