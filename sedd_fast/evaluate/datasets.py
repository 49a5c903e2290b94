"""The rows of a named data set, detokenised: from the hub, or from a copy on disk.

    rows = named_rows("ptb")                               # needs the network once
    rows = named_rows("ptb", copy="data/ptb.valid.txt")    # never does

A copy may be what `datasets` saved (save_to_disk), a directory that it reads, a file of JSON lines,
Parquet or CSV, or the plain text as it was published.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sedd_fast.data.datasets import NAMED
from sedd_fast.data.sources import HubDataset, read_documents

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves
_SLICE = re.compile(r"(\w+)(?:\[(-?\d*):(-?\d*)\])?")


def named_rows(name: str, split: str | None = None, copy: str | Path | None = None) -> list[str]:
    """The rows of a data set of `named_data` as plain text.

    Args:
        name: such as "wikitext2".
        split: in place of the one that zero-shot tables are made on; as `datasets` writes splits.
        copy: a file or directory to read instead of the hub; its rows are detokenised likewise.

    Raises:
        ValueError: an unknown name, a copy that cannot be read, or the hub out of reach.
    """
    if name not in NAMED:
        raise ValueError(f"data set: expected one of {', '.join(NAMED)}, got {name!r}")
    source = HubDataset(name, split=split or NAMED[name].evaluated)
    if copy is not None:
        return list(source.clean(_raw_rows(source, Path(copy).expanduser())))
    try:
        return list(source.texts(source.load()))
    except ValueError as error:
        raise ValueError(
            f"{error}; where the hub is out of reach, give a copy of {name} with --data PATH"
        ) from error


def _raw_rows(source: HubDataset, path: Path) -> list[str]:
    if path.is_dir():
        return _column(source, _from_directory(source, path))
    if path.suffix in _BUILDERS:
        loaded = _load(_BUILDERS[path.suffix], data_files=str(path), split="train")
        return _column(source, loaded)
    (text,) = read_documents([str(path)])
    return source.entry.rows(text)


def _from_directory(source: HubDataset, path: Path) -> Any:
    if not any((path / name).is_file() for name in _SAVED):
        return _load(str(path), split=source.split)
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    match = _SLICE.fullmatch(source.split)
    if match is None or match[1] not in loaded:
        raise ValueError(
            f"--data: {path} has the splits {', '.join(loaded)}, not {source.split!r}; choose with "
            "--split"
        )
    start, stop = (int(edge) if edge else None for edge in match.groups()[1:])
    chosen = loaded[match[1]]
    return chosen.select(range(*slice(start, stop).indices(len(chosen))))


def _load(path: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"--data: {options.get('data_files', path)} could not be read: {cause[0][:200]}"
        ) from error


def _column(source: HubDataset, loaded: Any) -> list[str]:
    source.check_column(loaded)
    return list(loaded[source.text_column])
