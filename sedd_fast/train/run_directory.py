"""A training run's directory, and checkpoints that are there whole or not at all.

    RUN/config.yaml                   all settings, as the run was started or last resumed
    RUN/tokenizer/                    the tokenizer, fixed for the run
    RUN/metrics.jsonl                 one line per logged step
    RUN/tensorboard/                  the same for TensorBoard
    RUN/checkpoints/step-00000123/    state.pt, and rng-0.pt, rng-1.pt, ... of each process
    RUN/export/                       averaged weights and tokenizer: networks.load reads it

A checkpoint is written under a name that starts with a dot, every file and the directory are
flushed to the disk, and then it is renamed: whatever moment the machine stops at, the newest
`step-*` is complete. What a stopped process left under dotted names is removed at the next start.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def staging(self, step: int) -> Path:
        return self.checkpoints / f".step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        matches = (_STEP.fullmatch(p.name) for p in self.checkpoints.iterdir() if p.is_dir())
        return sorted(int(m.group(1)) for m in matches if m)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = self.steps()
        return self.checkpoint(steps[-1]) if steps else None

    def clean(self) -> None:
        """Remove what a killed process left half written or half removed."""
        patterns = (".export*", ".tokenizer*", "checkpoints/.step-*")
        leftovers = [path for pattern in patterns for path in self.path.glob(pattern)]
        for leftover in leftovers:
            shutil.rmtree(leftover)

    def commit(self, step: int, keep_last: int) -> Path:
        """Turn the staged checkpoint into a complete one, and drop all but the last few."""
        final = self.checkpoint(step)
        replace_directory(self.staging(step), final)
        for old in self.steps()[:-keep_last]:
            # Renamed first: a removal cut short must not leave a directory that looks complete.
            os.replace(self.checkpoint(old), self.staging(old))
            shutil.rmtree(self.staging(old))
        return final


def save_file(content: Any, path: Path) -> None:
    """`torch.save`, flushed to the disk."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def load_file(path: Path, mmap: bool = False) -> Any:
    """`torch.load` of plain data and tensors; ValueError with the remedy for a damaged file.

    With `mmap` tensors stay on the disk until they are read.
    """
    try:
        with zipfile.ZipFile(path):  # torch takes another file for one of its old format
            pass
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"checkpoint: cannot read {path} ({str(error).splitlines()[0]}); remove "
            f"{path.parent} to go on from the checkpoint before it"
        ) from error


def replace_directory(staged: Path, final: Path) -> None:
    """Flush `staged` and give it the name `final`, in place of what may have it."""
    for file in staged.rglob("*"):
        _flush(file)
    _flush(staged)
    if final.exists():
        old = final.with_name(f".{final.name}-old")
        os.replace(final, old)
        os.replace(staged, final)
        shutil.rmtree(old)
    else:
        os.replace(staged, final)
    _flush(final.parent)


def write_directory(final: Path, fill: Callable[[Path], None]) -> None:
    """Make `final` with the content that `fill(directory)` writes; it appears complete."""
    staged = final.with_name(f".{final.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    fill(staged)
    replace_directory(staged, final)


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, CUDA, numpy and Python, as plain data."""
    # The global generators are not ours, but a callback may draw from them.
    state_of_numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, keys, position, has_gauss, gauss = state_of_numpy
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    legacy = (name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss)
    np.random.set_state(legacy)  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
