"""Texts laid out as tokens, and read back."""

from __future__ import annotations

from sedd_fast.data.texts import Piece, lay_out, read_texts
from sedd_fast.data.tokenizers import CharTokenizer


def test_layout_round_trip():
    tokenizer = CharTokenizer.from_text(["abcdef"])
    tokens, known = lay_out([Piece("ab"), Piece("f", at=None)], tokenizer, 5)
    assert known.tolist() == [True, True, False, False, True]
    tokens[2], tokens[3] = tokenizer.eot, tokenizer.vocab_size  # end-of-text, then the mask
    (drawn,) = read_texts(tokens[None], known, tokenizer, mask_index=tokenizer.vocab_size)
    assert drawn.text == "ab<|endoftext|>[MASK]f"  # given text is never cut off
    assert drawn.marks == [(0, 2), (21, 22)]
    assert [drawn.text[a:b] for a, b in drawn.marks] == ["ab", "f"]


def test_a_text_ends_at_the_first_end_of_text_after_everything_given():
    tokenizer = CharTokenizer.from_text(["abcdef"])
    tokens, known = lay_out([Piece("b", at=2)], tokenizer, 6)
    tokens[1] = tokens[4] = tokenizer.eot
    (cut,) = read_texts(tokens[None], known, tokenizer)
    assert cut.tokens == tokens[:4].tolist()
    (whole,) = read_texts(tokens[None], known, tokenizer, keep_after_eot=True)
    assert whole.tokens == tokens.tolist()
