"""The directory of a training run, and checkpoints that are complete or absent.

    RUN/config.yaml                   all settings, as the run was started or last resumed
    RUN/tokenizer/                    the tokenizer, fixed for the run
    RUN/metrics.jsonl                 one line per logged step
    RUN/tensorboard/                  the same for TensorBoard
    RUN/checkpoints/step-00000123/    state.pt, and for each process rng-0.pt, rng-1.pt, ...
    RUN/export/                       averaged weights and tokenizer: models.networks.load reads it

A checkpoint is written under a name that starts with a dot, every file and the directory are
flushed to the disk, and then it is renamed: the newest `step-*` is complete even if the machine
stops at any moment. Files that a killed process left under dotted names are removed at the next
start.
"""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedd_fast.files.pickles import load_pickle, save_pickle
from sedd_fast.files.writing import flush

_STEP = re.compile(r"step-(\d{8,})")


class RunDirectory:
    """The paths of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.config, self.tokenizer = path / "config.yaml", path / "tokenizer"
        self.metrics, self.tensorboard = path / "metrics.jsonl", path / "tensorboard"
        self.checkpoints, self.export = path / "checkpoints", path / "export"

    def checkpoint(self, step: int, staging: bool = False) -> Path:
        """The checkpoint of a step, or the directory where its files are first written."""
        return self.checkpoints / f"{'.' if staging else ''}step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        matches = (_STEP.fullmatch(p.name) for p in self.checkpoints.glob("*") if p.is_dir())
        return sorted(int(m.group(1)) for m in matches if m)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self.steps()
        return self.checkpoint(steps[-1]) if steps else None

    def clean(self) -> None:
        """Remove directories that a killed process left partly written or partly removed."""
        for pattern in (".export*", ".tokenizer*", "checkpoints/.step-*"):
            for leftover in [*self.path.glob(pattern)]:
                shutil.rmtree(leftover)

    def commit(self, step: int, keep_last: int) -> None:
        """Rename the staged checkpoint to its final name, and remove all but `keep_last`."""
        replace_directory(self.checkpoint(step, staging=True), self.checkpoint(step))
        for old in self.steps()[:-keep_last]:
            # Renamed first: a removal cut short must not leave a directory that looks complete.
            removed = self.checkpoint(old, staging=True)
            os.replace(self.checkpoint(old), removed)
            shutil.rmtree(removed)


def save_file(content: Any, path: Path) -> None:
    """`torch.save`, flushed to the disk; OSError, with no file left, where it cannot be written."""
    save_pickle(content, path)


def load_file(path: Path, mmap: bool = False) -> dict[str, Any]:
    """`torch.load` of plain data and tensors, all verified.

    With `mmap` tensors stay on the disk until they are read, and are not verified.

    Raises:
        ValueError: the file is damaged or missing.
    """
    try:
        return load_pickle(path, mmap=mmap, tensors=not mmap)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"checkpoint: cannot read {path} ({str(error).splitlines()[0]}); remove "
            f"{path.parent} to resume from the checkpoint before it"
        ) from error


def replace_directory(staged: Path, final: Path) -> None:
    """Flush `staged` and rename it to `final`, replacing a directory of that name."""
    for file in staged.rglob("*"):
        flush(file)
    flush(staged)
    old = final.with_name(f".{final.name}-old")
    if final.exists():
        os.replace(final, old)
    os.replace(staged, final)
    if old.exists():
        shutil.rmtree(old)
    flush(final.parent)


def write_directory(final: Path, fill: Callable[[Path], None]) -> None:
    """Create `final` with the files that `fill(directory)` writes; it appears complete."""
    staged = final.with_name(f".{final.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    fill(staged)
    replace_directory(staged, final)


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, CUDA, numpy and Python, as plain data."""
    # Training does not draw from the generators of numpy and Python, but a callback may.
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, keys.tolist(), *rest],  # type: ignore[union-attr]
        "python": random.getstate(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
