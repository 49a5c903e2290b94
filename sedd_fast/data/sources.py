"""Where documents come from: local text files, the built-in corpus, Hugging Face data sets.

    pydoc            text that every Python carries (`pydoc_data.topics`), no download
    book.txt         a file; also a list of files, and globs such as "books/*.txt"
    NAME             a data set of the table `datasets.NAMED` (wikitext103, ptb, ...), detokenised;
                     else a data set on the Hugging Face hub, or a directory that `datasets` reads
    hf:NAME          the same, even where a file has that name

A file is one document; a row of a data set is one document, unless it has no text (null); the
built-in corpus is one document.
"""

import glob
import reprlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sedd_fast.data.datasets import NAMED, NamedData
from sedd_fast.data.files import read_text
from sedd_fast.data.libraries import explained
from sedd_fast.extras import import_library

BUILT_IN = "pydoc"
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
        what = f"{self.name!r} (configuration {self.configuration}, split {self.split!r})"
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

    def texts(self, dataset: Iterable[Any], first: int = 0) -> Iterator[str]:
        """The text of each row, in order, detokenised; rows without a text (null) are left out.

        `first` is the number of the first row, for error messages.
        """
        return self.clean((row.get(self.text_column) for row in dataset), first)

    def clean(self, rows: Iterable[Any], first: int = 0) -> Iterator[str]:
        """As `texts`, from the raw values of the text column.

        Raises:
            ValueError: a value is neither text nor null; the message names row and column.
        """
        detokenizer = self.entry.detokenizer
        for number, text in enumerate(rows, start=first):
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
    if not isinstance(source, str) or source == BUILT_IN:
        return False
    if source.startswith("hf:"):
        return True
    path = Path(source).expanduser()
    looks_local = (
        path.is_file()
        or glob.has_magic(source)
        or path.suffix.lower() in _TEXT_SUFFIXES
        or source.startswith(("/", "./", "../", "~"))
    )
    return not looks_local


def read_documents(source: str | Sequence[str]) -> list[str]:
    """The documents of local files or of the built-in corpus.

    Args:
        source: "pydoc", a path, a glob, or a list of paths and globs (files of a glob by name).

    Raises:
        ValueError: a file is missing, is a directory, is not UTF-8, or a glob matches nothing.
    """
    if source == BUILT_IN:
        return [pydoc_text()]
    names = [source] if isinstance(source, str) else source
    return [read_text(path) for name in names for path in _expand(name)]


def pydoc_text() -> str:
    """Python's own language topics, sorted by name and joined: about 460,000 characters.

    The text differs a little from one Python version to the next.
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip() + "\n" for name in sorted(topics))


def split_documents(documents: Sequence[str], held_out: float) -> tuple[list[str], list[str]]:
    """Cut the last fraction `held_out` of all characters off, as the held-out text.

    The cut falls inside a document (with a single file it must): the two parts of that document
    are then documents of their own.
    """
    if not 0 <= held_out < 1:
        raise ValueError(
            f"data.held_out: expected a fraction from 0 up to, not including, 1, got {held_out}"
        )
    keep = round(sum(map(len, documents)) * (1 - held_out))
    train, rest = [], []
    for text in documents:
        head, tail, keep = text[:keep], text[keep:], max(0, keep - len(text))
        train += [head] if head else []
        rest += [tail] if tail else []
    return train, rest


def _expand(name: str) -> list[Path]:
    expanded = str(Path(name).expanduser())
    if Path(expanded).is_file():
        return [Path(expanded)]
    found = [Path(path) for path in sorted(glob.glob(expanded, recursive=True))]
    if files := [path for path in found if path.is_file()]:
        return files
    if glob.has_magic(expanded):
        raise ValueError(f"data: no file matches {name!r}; check the pattern (** is recursive)")
    if found:
        raise ValueError(f"data: {name!r} is a directory; name its files, as in '{name}/*.txt'")
    raise ValueError(f"data: no file {name!r} (seen from {Path.cwd()}); check the path")


def load_rows(path: str, configuration: str | None = None, **options: Any) -> Any:
    """`datasets.load_dataset`, which reads text files of a directory without byte order mark."""
    import datasets

    if Path(path).expanduser().is_dir():
        with tempfile.TemporaryDirectory() as cache:  # whose files could be within the directory
            builder = datasets.load_dataset_builder(path, configuration, cache_dir=cache)
        if hasattr(builder.config, "keep_linebreaks"):  # the one that reads text by lines
            options["encoding"] = "utf-8-sig"
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
