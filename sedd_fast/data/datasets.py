"""The data sets that papers report, by short name: their source and how their rows become text.

    wikitext2, wikitext103, ptb, lm1b, lambada, text8, openwebtext

One table for training (`data.train=wikitext103`), evaluation (`sedd-fast eval ptb`) and
`sedd_fast.compat`. Nothing here needs a loading script, which `datasets` 4 no longer runs: where a
repository still holds one, its Parquet branch is named. `NAMED[name].evaluated` is the split that
zero-shot tables are made on by the code of MDLM (Sahoo et al. 2024, arXiv 2406.07524): validation
for WikiText and Penn Treebank, test for the others, the last 100,000 documents of OpenWebText.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sedd_fast.data import detokenizers
from sedd_fast.data.files import split_lines

Detokenizer = Callable[[str], str]


def _wikitext_rows(text: str) -> list[str]:
    """As on the hub: each line, with its line break, is a row; a blank line is an empty row."""
    return [line if line.strip() else "" for line in re.findall("[^\n]*\n|[^\n]+", text)]


def _ptb_rows(text: str) -> list[str]:
    """Each line is a sentence; some copies end it with <eos>."""
    return [line.strip().removesuffix("<eos>").strip() for line in split_lines(text)]


def _sentence_rows(text: str) -> list[str]:
    return [line.strip() for line in split_lines(text)]


@dataclass(frozen=True)
class NamedData:
    """One data set.

    Attributes:
        path: the first argument of `datasets.load_dataset`: a hub repository or a directory.
        evaluated: the split of the zero-shot tables.
        configuration: a configuration of the repository.
        column: the column that holds the text.
        options: further arguments of `load_dataset`.
        detokenizer: turns a row's text, spaced out between its tokens, into plain text; None where
            it is plain.
        rows: splits a plain text file of this data set into rows.
    """

    path: str
    evaluated: str
    configuration: str | None = None
    column: str = "text"
    options: Mapping[str, Any] = field(default_factory=dict)
    detokenizer: Detokenizer | None = None
    rows: Callable[[str], list[str]] = lambda text: [text]


_PARQUET = {"revision": "refs/convert/parquet"}  # the hub's own conversion of script repositories

NAMED: Mapping[str, NamedData] = {
    "wikitext2": NamedData(
        "Salesforce/wikitext", "validation", "wikitext-2-raw-v1",
        detokenizer=detokenizers.wt_detokenizer, rows=_wikitext_rows,
    ),
    "wikitext103": NamedData(
        "Salesforce/wikitext", "validation", "wikitext-103-raw-v1",
        detokenizer=detokenizers.wt_detokenizer, rows=_wikitext_rows,
    ),
    "ptb": NamedData(
        "ptb-text-only/ptb_text_only", "validation", column="sentence", options=_PARQUET,
        detokenizer=detokenizers.ptb_detokenizer, rows=_ptb_rows,
    ),
    "lm1b": NamedData(
        "billion-word-benchmark/lm1b", "test", options=_PARQUET,
        detokenizer=detokenizers.lm1b_detokenizer, rows=_sentence_rows,
    ),
    "lambada": NamedData(  # "default" is OpenAI's version, as it distributed it with GPT-2
        "EleutherAI/lambada_openai", "test", "default", options=_PARQUET,
        detokenizer=detokenizers.lambada_detokenizer, rows=_sentence_rows,
    ),
    "text8": NamedData("afmck/text8", "test"),  # 90, 5 and 5 million characters, a row each
    "openwebtext": NamedData("Skylion007/openwebtext", "train[-100000:]"),
}  # fmt: skip
