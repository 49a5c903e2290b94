"""Where documents come from: local text files, the built-in corpus, Hugging Face data sets.

    pydoc            text that every Python carries (`pydoc_data.topics`), no download
    docstrings       those of Python's standard library, no download either
    book.txt         a file; also a list of files, and globs such as "books/*.txt"
    NAME             a data set of the table `datasets.NAMED` (wikitext103, ptb, ...), detokenised;
                     else a data set on the Hugging Face hub, or a directory that `datasets` reads
    hf:NAME          the same, even where a file has that name

A file is one document; a row of a data set is one document, unless it has no text (null); pydoc
is one document, and docstrings are one document a module.
"""

import ast
import glob
import reprlib
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any

from sedd_fast.data.datasets import NAMED, NamedData
from sedd_fast.data.files import read_text
from sedd_fast.data.libraries import explained
from sedd_fast.extras import import_library
from sedd_fast.files import hub
from sedd_fast.files.paths import expanded

#: Directories of the standard library whose docstrings are left out: tests, tables, old copies.
_NO_DOCSTRINGS = frozenset(
    ("__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
     "dist-packages", "test", "tests", "turtledemo")
)  # fmt: skip
_SHORTEST_DOCSTRING = 60  # characters; shorter ones say little more than the name
_COLUMN = "text"
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".csv", ".log", ".py", ".jsonl", ".json")


@dataclass(frozen=True)
class HubDataset:
    """A data set of the `datasets` library: its name, configuration, split and text column.

    A name in `NAMED` brings its own configuration and column, and its rows are detokenised.
    """

    name: str
    configuration: str | None = None
    split: str = "train"
    column: str = _COLUMN
    streaming: bool = False

    def load(self, cache_dir: str | None = None) -> Any:
        """The `datasets.Dataset` or, streaming, `datasets.IterableDataset`.

        `cache_dir` is that of `datasets.load_dataset`.

        Raises:
            ValueError: not found, no such split or configuration, no text column, or `datasets` is
                not installed; says which.
        """
        import_library(
            "datasets", "train", f"data: {self.name!r} is not a file here; reading a data set"
        )
        what = f"{self.name!r}{hub.near(self.name, (*NAMED, *BUILT_IN))}"
        what += f" (configuration {self.configuration}, split {self.split!r})"
        with loading(
            f"data: {what} is neither a file here nor a data set that could be loaded",
            "check the name, data.config, data.split, and the network",
        ):
            loaded = load_rows(
                self.entry.path, self.configuration or self.entry.configuration,
                split=self.split, streaming=self.streaming, cache_dir=cache_dir,
                **self.entry.options,
            )  # fmt: skip
        self.check_column(loaded)
        return loaded

    @property
    def entry(self) -> NamedData:
        """The entry of `NAMED`; for any other name an entry with default settings."""
        return NAMED.get(self.name) or NamedData(self.name, self.split)

    @property
    def text_column(self) -> str:
        """The column that was set, or the one that `NAMED` gives."""
        return self.entry.column if self.column == _COLUMN else self.column

    @property
    def treatment(self) -> str:
        """Column and detokenizer: what a row's text depends on, as part of a cache key."""
        detokenizer = getattr(self.entry.detokenizer, "__name__", "")
        return f"{self.text_column} {detokenizer}"

    def check_column(self, dataset: Any) -> None:
        """ValueError, with the columns of the data set, unless the text column is one of them."""
        columns = dataset.column_names or list(next(iter(dataset), {}))
        if self.text_column not in columns:
            raise ValueError(
                f"data.text_column: the data set {self.name!r} has no column "
                f"{self.text_column!r}; its columns are {', '.join(columns)}"
            )

    def texts(self, dataset: Iterable[Any], numbers: Iterable[int] | None = None) -> Iterator[str]:
        """The text of each row, in order, detokenised; rows without a text (null) are left out.

        `numbers` are those of the rows, for error messages; None: 0, 1, ...
        """
        return self.clean((row.get(self.text_column) for row in dataset), numbers)

    def clean(self, rows: Iterable[Any], numbers: Iterable[int] | None = None) -> Iterator[str]:
        """As `texts`, from the raw values of the text column.

        Raises:
            ValueError: a value is neither text nor null; the message names row and column.
        """
        detokenizer = self.entry.detokenizer
        for number, text in zip(count() if numbers is None else numbers, rows, strict=False):
            if text is None:
                continue
            if not isinstance(text, str):
                raise ValueError(
                    f"data.text_column: row {number} of the data set {self.name!r}, counted from "
                    f"0 as rows are read, has {type(text).__name__} in column "
                    f"{self.text_column!r}, not text: {reprlib.repr(text)}; choose a column of "
                    "text, or convert this one"
                )
            yield detokenizer(text) if detokenizer else text


def is_hub_name(source: str | Sequence[str]) -> bool:
    """True where `source` names a `datasets` data set, not files or the built-in corpus."""
    if not isinstance(source, str) or source in BUILT_IN:
        return False
    if source.startswith("hf:"):
        return True
    path = expanded(source)
    looks_local = (
        path.is_file()
        or glob.has_magic(source)
        or path.suffix.lower() in _TEXT_SUFFIXES
        or not (path.is_dir() or hub.may_be_repository(source))
    )
    return not looks_local


def read_documents(source: str | Sequence[str]) -> list[str]:
    """The documents of local files or of built-in texts.

    Args:
        source: "pydoc", "docstrings", a path, a glob, or a list of these (files of a glob by name).

    Raises:
        ValueError: a file is missing, is a directory, is not UTF-8, or a glob matches nothing;
            or there is no text.
    """
    documents: list[str] = []
    names = [source] if isinstance(source, str) else source
    for name in names:
        read = BUILT_IN.get(name)
        documents += read() if read else map(read_text, expand(name))
    if not any(documents):
        raise ValueError(f"data: {', '.join(names)}: it holds no text; check the file")
    return documents


def pydoc_text() -> str:
    """Python's own language topics, sorted by name and joined: about 460,000 characters.

    The text differs a little from one Python version to the next.
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip() + "\n" for name in sorted(topics))


def docstrings() -> list[str]:
    """Docstrings of modules, classes and functions of Python's standard library, by module.

    About 1.4 million characters in 500 documents. The text differs from one Python version to the
    next. A docstring that occurs twice is left out the second time.

    Raises:
        ValueError: this Python comes without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    documents = []
    for file in sorted(root.rglob("*.py")):
        if not _NO_DOCSTRINGS.isdisjoint(file.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # templates of scripts, and tests of the parser
        defined = (node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
        own = dict.fromkeys(ast.get_docstring(node) or "" for node in defined)
        new = [text for text in own if len(text) >= _SHORTEST_DOCSTRING and text not in seen]
        seen.update(new)
        if new:
            documents.append("\n\n\n".join(new) + "\n")
    if not documents:
        raise ValueError(
            f"data: no docstrings in {root}: this Python has no sources of its library; use "
            "another Python, or data.train=pydoc"
        )
    return documents


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
#: Name -> its documents.
BUILT_IN: dict[str, Callable[[], list[str]]] = {
    "pydoc": lambda: [pydoc_text()],
    "docstrings": docstrings,
}


def held_out_ranges(count: int, share: float, passages: int) -> list[range]:
    """The positions that are held out of 0 .. count - 1: `passages` ranges spread evenly over them.

    Each is the end of one of `passages` equal parts; one passage is the end of the whole. What is
    left of the first n positions is round((1 - share) * n), at the end of each part.
    """
    if not 0 <= share < 1:
        raise ValueError(
            f"data.held_out: expected a fraction from 0 up to, not including, 1, got {share}"
        )
    ends = [count * number // passages for number in range(passages + 1)]
    kept = [round(end * (1 - share)) for end in ends]
    parts = zip(pairwise(ends), pairwise(kept), strict=True)
    ranges = (range(start + b - a, end) for (start, end), (a, b) in parts)
    return [each for each in ranges if each]


def kept_ranges(held_out: Sequence[range], count: int) -> list[range]:
    """The ranges of 0 .. count - 1 between and around the ranges `held_out`."""
    starts = [0, *(each.stop for each in held_out)]
    stops = [*(each.start for each in held_out), count]
    return [range(a, b) for a, b in zip(starts, stops, strict=True) if a < b]


def split_documents(
    documents: Sequence[str], held_out: Sequence[range]
) -> tuple[list[str], list[str]]:
    """The text outside and inside the ranges `held_out` of characters, over all documents.

    A document that a range cuts gives several parts, which are documents of their own.
    """
    kept = kept_ranges(held_out, sum(map(len, documents)))
    return _within(documents, kept), _within(documents, held_out)


def _within(documents: Sequence[str], ranges: Sequence[range]) -> list[str]:
    """What of the documents lies in the ranges; one part for each document and range."""
    firsts = list(accumulate(map(len, documents), initial=0))  # of each document, among all
    return [
        part
        for text, first in zip(documents, firsts, strict=False)
        for each in ranges
        if (part := text[max(0, each.start - first) : max(0, each.stop - first)])
    ]


def expand(name: str) -> list[Path]:
    """The files that a path or a glob names, sorted; ValueError where there are none."""
    full = str(expanded(name))
    if Path(full).is_file():
        return [Path(full)]
    found = [Path(path) for path in sorted(glob.glob(full, recursive=True))]
    if files := [path for path in found if path.is_file()]:
        return files
    if glob.has_magic(full):
        raise ValueError(f"data: no file matches {name!r}; check the pattern (** is recursive)")
    if found:
        raise ValueError(f"data: {name!r} is a directory; name its files, as in '{name}/*.txt'")
    near = hub.near(name, (*NAMED, *BUILT_IN))
    raise ValueError(f"data: no file {name!r}{near}, seen from {Path.cwd()}; check the path")


def load_rows(path: str, configuration: str | None = None, **options: Any) -> Any:
    """`datasets.load_dataset`, which reads text files of a directory without byte order mark."""
    import datasets

    if expanded(path).is_dir():
        with tempfile.TemporaryDirectory() as cache:  # whose files could be within the directory
            builder = datasets.load_dataset_builder(path, configuration, cache_dir=cache)
        if hasattr(builder.config, "keep_linebreaks"):  # the one that reads text by lines
            options["encoding"] = "utf-8-sig"
    with hub.access(path):
        return datasets.load_dataset(path, configuration, **options)


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Explain an error of `datasets` that keeps it from loading a data set."""
    from datasets.exceptions import DatasetsError

    with explained(what, remedy, OSError, ValueError, RuntimeError, DatasetsError):
        try:
            yield
        except StopIteration as error:  # of a file of JSON lines that is empty
            raise ValueError("it holds no rows") from error
