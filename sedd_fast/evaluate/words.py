"""The share of the words of samples that occur in a text, such as the one a model is trained on.

A word is a run of letters, case kept: "don't" is two. The share of held-out text is what samples
can be expected to reach. Words in a wrong order count like others.
"""

import re
from collections.abc import Iterable

from sedd_fast.data.basic_tokenizers import END_OF_TEXT

_WORD = re.compile(r"[^\W\d_]+")


def words(text: str) -> list[str]:
    """The words of a text, in order; end-of-text is none."""
    return _WORD.findall(text.replace(END_OF_TEXT, " "))


def known_words(samples: Iterable[str], texts: Iterable[str]) -> float:
    """The fraction of the words of `samples` that occur in `texts`; NaN where there is no word.

    The first and the last word of a sample count too: a sample may begin or end within a word.

    Example:
        >>> known_words(["the statment ends"], ["A statement", "the line ends"])
        0.6666666666666666
    """
    known = {word for text in texts for word in words(text)}
    found = [word in known for sample in samples for word in words(sample)]
    return sum(found) / len(found) if found else float("nan")
