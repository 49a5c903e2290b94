"""Detokenizers: plain text from data sets published as spaced-out tokens ("it 's 1 @,@ 000").

The rules are those that published perplexities on these data sets assume; their order matters.
"""

import re
from collections.abc import Iterable

_WIKITEXT = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_WIKITEXT_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
_PTB = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    (" N ", " 1 "),
    (" N ", " 1 "),  # again: neighbours share their space
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)


def wt_detokenizer(string: str) -> str:
    """WikiText."""
    string = _replace(string, _WIKITEXT)
    for left, right in ("()", "[]", "{}", '""', "''"):
        inside = rf"\{left}\s*([^\{right}]*?)\s*\{right}"
        string = re.sub(inside, rf"{left}\1{right}", string)
    return _replace(string, _WIKITEXT_LAST)


def ptb_detokenizer(x: str) -> str:
    """Penn Treebank, whose numbers are all "N"."""
    return _replace(x, _PTB)


def lm1b_detokenizer(x: str) -> str:
    """One Billion Words."""
    x = _replace(x, (("http : / / ", "http://"), ("https : / / ", "https://")))
    x = re.sub(r" '(\w+)", r"'\1", x)
    x = re.sub(r" (\w+) \. ", r" \1. ", x)
    x = re.sub(r" (\w+) \.$", r" \1.", x)
    for mark in "?!":
        x = re.sub(rf" \{mark}$", mark, x.replace(f" {mark} ", f"{mark} "))
    x = _replace(x, ((" , ", ", "), (" : ", ": "), (" ; ", "; "), (" / ", "/")))
    for left, right in ('""', "''", "()", "[]"):
        not_inside = re.escape(left + right if left != right else left)
        x = re.sub(rf"\{left} ([^{not_inside}]+) \{right}", rf"{left}\1{right}", x)
    return _replace(x, (("$ ", "$"), ("£ ", "£")))


def lambada_detokenizer(text: str) -> str:
    """LAMBADA: straight quotation marks, and a line break before the text."""
    return "\n" + _replace(text, (("“", '"'), ("”", '"'))).strip()


def _replace(text: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text
