"""The directory of a training run, and checkpoints that are complete or absent.

    RUN/config.yaml                   all settings, as the run was started or last resumed
    RUN/tokenizer/                    the tokenizer, fixed for the run
    RUN/metrics.jsonl                 one line per logged step
    RUN/samples.jsonl                 completions drawn of held-out prompts
    RUN/tensorboard/                  the same for TensorBoard
    RUN/checkpoints/step-00000123/    state.pt, and for each process rng-0.pt, rng-1.pt, ...
    RUN/export/                       averaged weights and tokenizer: models.networks.load reads it
    RUN/run.lock                      while a process trains there (`lock`)

A checkpoint is written under a name that starts with a dot, every file and the directory are
flushed to the disk, and then it is renamed: the newest `step-*` is complete even if the machine
stops at any moment. What a killed process left under these dotted names is removed at the next
start. The export names the step of its weights in step.json, so that one that is older than the
newest checkpoint is found and written again. `export` may be a symbolic link to a directory, which
is then replaced at its place.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedd_fast.files.paths import expanded
from sedd_fast.files.pickles import load_pickle, save_pickle
from sedd_fast.files.writing import flush
from sedd_fast.models.checkpoint import CONFIG, SAFETENSORS

_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL_STEP = re.compile(r"\.step-\d{8,}(-old)?")
_EXPORTED = "step.json"  # in export/: the step of its weights


class RunDirectory:
    """The paths of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = expanded(path)
        self.config, self.tokenizer = path / "config.yaml", path / "tokenizer"
        self.metrics, self.tensorboard = path / "metrics.jsonl", path / "tensorboard"
        self.samples = path / "samples.jsonl"
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

    def exported_step(self) -> int | None:
        """The step whose averaged weights the export holds; None where it is not complete."""
        files = (self.export / name for name in (CONFIG, SAFETENSORS, _EXPORTED))
        if not all(file.is_file() for file in files):
            return None
        try:
            step = json.loads((self.export / _EXPORTED).read_text(encoding="utf-8"))["step"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return step if type(step) is int else None

    def forget_export(self) -> None:
        """Mark the export as out of date."""
        (self.export / _EXPORTED).unlink(missing_ok=True)

    def check_directories(self) -> None:
        """ValueError where a file stands in the place of a directory."""
        for path in (self.export, self.tokenizer, self.checkpoints):
            if path.exists() and not path.is_dir():
                raise ValueError(f"run_dir: {path} is not a directory; move that file away")

    def clean(self) -> None:
        """Remove directories that a killed process left partly written or partly removed."""
        for final in (self.export.resolve(), self.tokenizer.resolve()):
            for leftover in (_staging(final), _replaced(final)):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
        for leftover in [*self.checkpoints.glob(".step-*")]:
            if _PARTIAL_STEP.fullmatch(leftover.name) and leftover.is_dir():
                _remove(leftover)
        for file in (self.config, self.metrics, self.samples):
            partial = file.with_name(f"{file.name}.tmp")
            if partial.is_file():
                partial.unlink()

    def commit(self, step: int, keep_last: int) -> None:
        """Rename the staged checkpoint to its final name, and remove all but `keep_last`."""
        replace_directory(self.checkpoint(step, staging=True), self.checkpoint(step))
        for old in self.steps()[:-keep_last]:
            # Renamed first: a removal cut short must not leave a directory that looks complete.
            removed = self.checkpoint(old, staging=True)
            os.replace(self.checkpoint(old), removed)
            _remove(removed)


def weights_of(name: str, argument: str = "model") -> str:
    """The directory of weights in a run directory; any other name unchanged.

    Raises:
        ValueError: the run has none yet; the message begins with `argument`.
    """
    run = RunDirectory(name)
    if run.export.is_dir():
        return str(run.export)
    if run.config.is_file() and not (run.path / CONFIG).is_file():
        raise ValueError(
            f"{argument}: the run {run.path} holds no weights yet (they are written with the first "
            f"checkpoint); continue it with: sedd-fast train --resume {run.path}"
        )
    return name


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
    old = _replaced(final)
    if final.exists():
        os.replace(final, old)
    os.replace(staged, final)
    flush(final.parent)
    if old.exists():
        _remove(old)


def write_directory(final: Path, fill: Callable[[Path], None]) -> None:
    """Create `final` with the files that `fill(directory)` writes; it appears complete.

    Where `final` is a symbolic link, the link stays and its target is replaced.
    """
    final = final.resolve()
    staged = _staging(final)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    fill(staged)
    replace_directory(staged, final)


def write_export(run: RunDirectory, step: int, fill: Callable[[Path], None]) -> None:
    """Write the export of a step; `fill(directory)` writes weights and tokenizer."""

    def fill_and_name(directory: Path) -> None:
        fill(directory)
        (directory / _EXPORTED).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")

    write_directory(run.export, fill_and_name)


def _staging(final: Path) -> Path:
    """Where the files of a directory are first written."""
    return final.with_name(f".{final.name}")


def _replaced(final: Path) -> Path:
    """Where a directory is moved before the new one takes its name."""
    return final.with_name(f".{final.name}-old")


def _remove(directory: Path) -> None:
    """Remove a directory, or a link to one."""
    if directory.is_symlink():
        directory.unlink()
    else:
        shutil.rmtree(directory)


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
