"""Names of models, tokenizers and data sets: a path here, or a repository of the Hugging Face Hub.

may_be_repository("runs/x")    False beside a folder of runs: a mistyped path never asks the Hub
near("runs/dmo")               " (did you mean runs/demo?)"
with access("owner/name"):     calls of a library that downloads; without the Hub, its cache
"""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeGuard

from sedd_fast.files.paths import expanded

_REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
#: Modules whose HF_HUB_OFFLINE the libraries look at, transformers at the first.
_SETTINGS = ("huggingface_hub.constants", "datasets.config")
#: What the contexts of `_offline` of all threads share: the lock, their number, why the Hub
#: cannot be asked, and what the user has set.
_LOCK = Lock()
_contexts = 0
_cause: str | None = None
_users_setting: dict[str, bool] = {}
_SECONDS = 5.0  # for an answer of the Hub
_LIKENESS = 0.7  # of nearly equal names, as `difflib` measures it
_RUNS = Path("runs")  # where `sedd-fast train` puts runs


def may_be_repository(name: str | Path) -> bool:
    """Whether a name is not that of a path: "name", or "owner/name".

    "owner/name" is taken for a mistyped path where a folder `owner` is called runs, holds run
    directories, or holds something that is nearly called `name`.
    """
    return _has_form(name) and not _folder_of(name)


def not_asked(name: str | Path) -> str:
    """What an error says of a path that could be a repository's name; "" for any other name."""
    if not _has_form(name) or not (folder := _folder_of(name)):
        return ""
    return f", and the Hub is not asked, because the folder {folder} exists here"


def _has_form(name: str | Path) -> TypeGuard[str]:
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None


def _folder_of(name: str) -> str:
    """The folder here in which a path `name` would be; "" where it is not taken for a path."""
    folder, _, last = name.rpartition("/")
    if not folder or not Path(folder).is_dir():
        return ""
    try:
        inside = list(Path(folder).iterdir())
        known = folder == str(_RUNS) or any((path / "config.yaml").is_file() for path in inside)
    except OSError:  # it may not be read: nothing says that the name is a path
        return ""
    return folder if known or _close(last, [path.name for path in inside]) else ""


def _close(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, names, cutoff=_LIKENESS)


def near(name: str | Path, known: Iterable[str] = (), folders: bool = False) -> str:
    """ " (did you mean ...?)" with the paths whose last part is nearly that of `name`, or "".

    Args:
        name: a path that does not exist. Its neighbours and the runs in `runs` are compared.
        known: further names to compare with.
        folders: leave files out.
    """
    wanted, found = expanded(name), {each: each for each in known}
    if str(name) in found:
        return ""
    for folder in (_RUNS, wanted.parent):
        try:
            beside = [path for path in folder.iterdir() if path.is_dir() or not folders]
        except OSError:
            continue
        found |= {
            path.name: str(path)
            for path in beside
            if not path.name.startswith(".") and path != wanted
        }
    close = _close(wanted.name, found)
    return f" (did you mean {' or '.join(found[each] for each in close)}?)" if close else ""


def check_model(name: str | Path) -> None:
    """FileNotFoundError where a model's name is that of a path, and nothing is there."""
    path = expanded(name)
    if not path.exists() and not may_be_repository(name):
        raise FileNotFoundError(
            f"no directory {str(path)!r}{near(path, folders=True)}{not_asked(name)}; give one that "
            "holds config.json and model.safetensors, or the name of a Hub repository such as "
            "louaaron/sedd-small"
        )


@contextmanager
def access(name: str | Path, endpoint: str | None = None) -> Iterator[None]:
    """A context for calls that load `name`: a directory, or a repository of the Hub.

    The Hub is asked once whether it answers. Where it does not, or HF_HUB_OFFLINE is set, the
    libraries read their caches without the retries that they would make.

    Args:
        name: of the model, tokenizer or data set.
        endpoint: address of the Hub; None: that of `huggingface_hub`.

    Raises:
        ValueError: the name is empty.
        FileNotFoundError: the name is that of a path, and nothing is there.
        ConnectionError: the Hub does not answer, and no cache holds the name.
    """
    if name == "":
        raise ValueError("got an empty name")
    if expanded(name).exists():
        yield
        return
    if not may_be_repository(name):
        raise FileNotFoundError(
            f"there is no file or directory {str(name)!r}{near(name)}{not_asked(name)}"
        )
    if (cause := unreachable(endpoint)) is None:
        yield
        return
    try:
        with _offline(cause):
            yield
    except OSError as error:
        raise ConnectionError(f"{cause}, and the cache has no {name}") from error


@contextmanager
def _offline(cause: str) -> Iterator[None]:
    """Set HF_HUB_OFFLINE in the libraries until the last of these contexts in any thread ends."""
    global _contexts, _cause
    with _LOCK:
        _contexts, _cause = _contexts + 1, _cause or cause
        # Not the environment: it is read when a library is imported.
        for name, settings in _loaded():
            _users_setting.setdefault(name, settings["HF_HUB_OFFLINE"])
            settings["HF_HUB_OFFLINE"] = True
    try:
        yield
    finally:
        with _LOCK:
            _contexts -= 1
            if _contexts == 0:
                # A library that was imported meanwhile has copied the value of the first.
                default = _users_setting.get(_SETTINGS[0], False)
                for name, settings in _loaded():
                    settings["HF_HUB_OFFLINE"] = _users_setting.get(name, default)
                _users_setting.clear()
                _cause = None


def _loaded() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _SETTINGS:
        if name in sys.modules and "HF_HUB_OFFLINE" in (settings := vars(sys.modules[name])):
            yield name, settings


def unreachable(endpoint: str | None = None) -> str | None:
    """Why the Hub cannot be asked; None where it answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    with _LOCK:  # the setting is the user's where no thread has found a cause
        if _cause is not None:
            return _cause
        offline = constants.HF_HUB_OFFLINE
    if offline:
        return "HF_HUB_OFFLINE is set"
    address = endpoint or constants.ENDPOINT
    try:
        status = get_session().head(address, timeout=_SECONDS).status_code
    except Exception as error:  # its kind depends on the library that huggingface_hub uses
        return f"{address} cannot be reached: {str(error).strip() or type(error).__name__}"
    return f"{address} answers with error {status}" if status >= 500 else None
