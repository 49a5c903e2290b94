"""The rows of a named data set, detokenised: from the hub, or from a copy on disk.

    rows = named_rows("ptb")                               # needs the network once
    rows = named_rows("ptb", copy="data/ptb.valid.txt")    # never does

A copy may be what `datasets` saved (save_to_disk), a directory that it reads, a file of JSON lines,
Parquet or CSV, or the plain text as it was published.
"""

from pathlib import Path
from typing import Any

from sedd_fast.data.datasets import NAMED
from sedd_fast.data.sources import HubDataset, load_rows, loading, read_documents
from sedd_fast.extras import MissingLibraryError, import_library
from sedd_fast.files.paths import expanded

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_SAVED = ("state.json", "dataset_dict.json")  # the files that save_to_disk leaves


def named_rows(name: str, split: str | None = None, copy: str | Path | None = None) -> list[str]:
    """The rows of a data set of `sedd_fast.data.datasets.NAMED` as plain text.

    Args:
        name: such as "wikitext2".
        split: read this split, in the notation of `datasets` ("test", "train[-1000:]"); None: the
            one that zero-shot tables are made on.
        copy: a file or directory to read instead of the hub; its rows are detokenised likewise.

    Raises:
        ValueError: an unknown name, a copy that cannot be read, or the hub out of reach.
    """
    if name not in NAMED:
        raise ValueError(f"data set: expected one of {', '.join(NAMED)}, got {name!r}")
    source = HubDataset(name, split=split or NAMED[name].evaluated)
    if copy is not None:
        return list(source.clean(_raw_rows(source, expanded(copy))))
    try:
        return list(source.texts(source.load()))
    except MissingLibraryError:
        raise
    except ValueError as error:
        raise ValueError(
            f"{error}; where the hub is out of reach, give a copy of {name} with --data PATH"
        ) from error


def _raw_rows(source: HubDataset, path: Path) -> list[str]:
    if not path.is_dir() and path.suffix not in _BUILDERS:
        (text,) = read_documents([str(path)])
        return source.entry.rows(text)
    import_library("datasets", "train", f"--data: reading {path}")
    with loading(f"--data: {path} could not be read", "check the file"):
        dataset = _load(source, path)
    if isinstance(dataset, dict):
        dataset = _select(dataset, source.split, path)
    source.check_column(dataset)
    return list(dataset[source.text_column])


def _load(source: HubDataset, path: Path) -> Any:
    """A `datasets.Dataset`; a `datasets.DatasetDict` where one was saved."""
    import datasets

    if not path.is_dir():
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train")
    if any((path / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(str(path))
    return load_rows(str(path), split=source.split)


def _select(saved: Any, split: str, path: Path) -> Any:
    """The rows of a `datasets.DatasetDict` that `split` names."""
    import datasets

    sizes = {name: len(rows) for name, rows in saved.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except ValueError as error:
        raise ValueError(
            f"--data: {path} has the splits {', '.join(sizes)}, not {split!r}; choose with --split"
        ) from error
    rows = [saved[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return datasets.concatenate_datasets(rows)
