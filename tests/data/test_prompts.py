r"""Templates: gaps, pieces at their places, brackets that are meant."""

from __future__ import annotations

import pytest

from sedd_fast.data.prompts import read_template, split_template
from sedd_fast.data.texts import Piece, lay_out
from sedd_fast.data.tokenizers import CharTokenizer


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("The [8] fox [12] dog.", ["The ", 8, " fox ", 12, " dog."]),
        ("[3]", [3]),
        ("[3][4]", [3, 4]),
        (r"a\[1\] [2]", ["a[1] ", 2]),
        (r"a\\[2]", ["a\\", 2]),
        (r"C:\dir [2]", [r"C:\dir ", 2]),
        ("two\nlines [007]", ["two\nlines ", 7]),
    ],
)
def test_split(template: str, parts: list[str | int]) -> None:
    assert split_template(template) == parts


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no gap", "there is no gap"),
        ("", "there is no gap"),
        ("a [x] b", r"the '\[' at character 2 .* with a backslash"),
        ("a 3] b", r"the '\]' at character 3"),
        ("a [-3] b", r"the '\[' at character 2"),
        ("a [0]", r"the gap \[0\] at character 2 is empty"),
    ],
)
def test_split_refuses(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_template(template)


def test_pieces_stand_where_the_gaps_leave_them() -> None:
    tokenizer = CharTokenizer.from_text(["abc [9]"])
    pieces, length = read_template(r"ab[3]c[2]\[9\]", tokenizer)
    assert [(piece.text, piece.at) for piece in pieces] == [("ab", 0), ("c", 5), ("[9]", 8)]
    assert length == 11
    tokens, known = lay_out(pieces, tokenizer, length)
    assert known.tolist() == [True] * 2 + [False] * 3 + [True] + [False] * 2 + [True] * 3
    assert tokenizer.decode(tokens[known].tolist()) == "abc[9]"
    with pytest.raises(ValueError, match="mine 'é'"):
        read_template("é[3]", tokenizer, "mine")
    assert Piece("ab").encode(tokenizer) == tokenizer.encode("ab")
