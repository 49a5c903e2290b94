"""Optional libraries: which extra of the package installs each, and the line where one is missing.

The line is "training needs accelerate: pip install 'sedd-fast[train]'".
"""

import importlib
from importlib.util import find_spec
from typing import Any

#: Extra -> the modules that it is for.
EXTRAS: dict[str, tuple[str, ...]] = {
    "cuda": ("triton",),
    "train": ("accelerate", "datasets", "tensorboard"),
    "plot": ("matplotlib",),
    "eval": ("transformers", "mauve"),
    "wandb": ("wandb",),
    "lm-eval": ("lm_eval",),
}


class MissingLibraryError(ValueError):
    """A library that an extra installs is not there; the message has the pip command."""


def import_library(name: str, extra: str, user: str) -> Any:
    """The module `name`.

    Args:
        name: of the module, such as "matplotlib.figure".
        extra: that installs it.
        user: what needs the library, for the message.

    Raises:
        MissingLibraryError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        # The library may be there, and lack one that it needs itself.
        why = f" ({error})" if find_spec(library) else ""
        raise MissingLibraryError(f"{user} needs {library}{why}: {pip_install(extra)}") from error


def pip_install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'sedd-fast[{extra}]'"


def missing_libraries() -> dict[str, list[str]]:
    """Extra -> those of its modules that are not installed."""
    missing = {x: [name for name in names if not find_spec(name)] for x, names in EXTRAS.items()}
    return {extra: names for extra, names in missing.items() if names}
