r"""Given text as tokens (pieces, templates with gaps and literal brackets); samples as text."""

import pytest

from sedd_fast.data.prompts import (
    Piece,
    decode_samples,
    lay_out,
    read_template,
    split_template,
)
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer, make_tokenizer


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


def test_the_space_before_a_gap_belongs_to_the_word_in_it():
    texts = ["a b", "the cat and a hat " * 50]
    for tokenizer, joined in ((make_tokenizer("bpe:300", texts), True), (ByteTokenizer(), False)):
        pieces, length = read_template("the [2] cat[1] a  [1] hat ", tokenizer)
        given = ["the", " cat", " a  ", " hat "] if joined else ["the ", " cat", " a  ", " hat "]
        assert [piece.text for piece in pieces] == given
        assert length == 4 + sum(len(tokenizer.encode(text)) for text in given)
    assert Piece("ab").encode(tokenizer) == tokenizer.encode("ab")


def test_layout_round_trip():
    tokenizer = CharTokenizer.from_text(["abcdef"])
    tokens, known = lay_out([Piece("ab"), Piece("f", at=None)], tokenizer, 5)
    assert known.tolist() == [True, True, False, False, True]
    tokens[2], tokens[3] = tokenizer.eot, tokenizer.vocab_size  # end-of-text, then the mask
    (drawn,) = decode_samples(tokens[None], known, tokenizer, mask_index=tokenizer.vocab_size)
    assert drawn.text == "ab<|endoftext|>[MASK]f"  # given text is never cut off
    assert drawn.marks == [(0, 2), (21, 22)]
    assert [drawn.text[a:b] for a, b in drawn.marks] == ["ab", "f"]


def test_a_text_ends_at_the_first_end_of_text_after_everything_given():
    tokenizer = CharTokenizer.from_text(["abcdef"])
    tokens, known = lay_out([Piece("b", at=2)], tokenizer, 6)
    tokens[1] = tokens[4] = tokenizer.eot
    (cut,) = decode_samples(tokens[None], known, tokenizer)
    assert cut.tokens == tokens[:4].tolist()
    (whole,) = decode_samples(tokens[None], known, tokenizer, keep_after_eot=True)
    assert whole.tokens == tokens.tolist()
