"""The share of known words."""

import math

import pytest

from sedd_fast.evaluate.words import known_words, words


def test_words_are_runs_of_letters():
    assert words('The "if" statement: don\'t x_1, größe 12 __eq__') == [
        "The", "if", "statement", "don", "t", "x", "größe", "eq",
    ]  # fmt: skip
    assert words("the end<|endoftext|>The") == ["the", "end", "The"]


def test_the_share_counts_every_occurrence_and_minds_case():
    texts = ["A statement is", "a line."]
    assert known_words(["a a statment", "is Line"], texts) == pytest.approx(3 / 5)
    assert known_words(["A statement"], texts) == 1.0
    assert known_words(["12 + 3"], texts) != known_words(["12 + 3"], texts)  # NaN
    assert math.isnan(known_words([], texts))
