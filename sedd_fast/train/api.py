"""Starting and resuming training runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sedd_fast.train.config import load_config, override
from sedd_fast.train.loop import Trainer
from sedd_fast.train.progress import (
    HeldOut,
    NonFiniteLossError,
    OnStep,
    StepInfo,
    TrainingInterrupted,
    TrainResult,
    resume_command,
)
from sedd_fast.train.run_directory import RunDirectory, load_file
from sedd_fast.train.settings import TrainConfig

__all__ = [
    "HeldOut",
    "NonFiniteLossError",
    "OnStep",
    "StepInfo",
    "TrainResult",
    "TrainingInterrupted",
    "is_finished",
    "resume",
    "resume_command",
    "train",
]


def train(config: TrainConfig, on_step: OnStep | None = None) -> TrainResult:
    """Train a new model.

    Args:
        config: all settings; `run_dir` None makes runs/NAME-DATE-TIME.
        on_step: called in the main process after every step.

    Raises:
        ValueError: a setting or a text is unusable, or the directory already holds a run.
        NonFiniteLossError: the loss or gradient is no longer a number.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    accelerator = make_accelerator(config)
    run = RunDirectory(_agreed_path(config, accelerator))
    if run.config.exists():
        raise ValueError(
            f"run_dir: {run.path} already holds a run; go on with: "
            f"{resume_command(run.path, accelerator.num_processes)}; or choose another run_dir"
        )
    accelerator.wait_for_everyone()
    return Trainer(replace(config, run_dir=str(run.path)), run, accelerator).fit(on_step)


def resume(
    run_dir: str | Path, overrides: Sequence[str] = (), on_step: OnStep | None = None
) -> TrainResult:
    """Go on with a run from its newest checkpoint (from the start if it has none yet).

    Args:
        run_dir: what `train` made.
        overrides: settings to change, such as "training.n_iters=20000".

    Raises:
        ValueError: no run there, or an override that the saved weights or text do not fit.
        NonFiniteLossError, TrainingInterrupted: as `train`.
    """
    run = RunDirectory(Path(run_dir))
    if not run.config.is_file():
        raise ValueError(f"run_dir: {run.path} holds no run (no config.yaml); check the path")
    config = override(load_config(files=[run.config]), [*overrides])
    config = replace(config, run_dir=str(run.path))
    return Trainer(config, run, make_accelerator(config)).fit(on_step)


def is_finished(run_dir: str | Path) -> bool:
    """Whether a run is there and has come to the end that its settings set.

    Raises:
        ValueError: its settings or its newest checkpoint cannot be read.
    """
    run = RunDirectory(Path(run_dir))
    newest = run.latest() if run.config.is_file() else None
    if newest is None:
        return False
    saved = load_file(newest / "state.pt", mmap=True)
    section = load_config(files=[run.config]).training
    return section.is_over(saved["step"], saved["elapsed"])


def make_accelerator(config: TrainConfig) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # A second run in one Python process may ask for another precision or device.
        AcceleratorState._reset_state(reset_partial_state=True)
    section = config.training
    accelerator = Accelerator(mixed_precision=section.mixed_precision, cpu=section.cpu)
    sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.distributed_type in sharded:
        raise ValueError(
            f"accelerate: {accelerator.distributed_type.value} is not supported; launch with "
            "plain data parallelism (accelerate launch --multi_gpu)"
        )
    return accelerator


def _agreed_path(config: TrainConfig, accelerator: Any) -> Path:
    """The run directory, the same in every process although their clocks may differ."""
    from accelerate.utils import broadcast_object_list

    path = [config.run_dir or _default_run_dir(config)]
    if accelerator.num_processes > 1:
        broadcast_object_list(path)
    return Path(path[0])


def _default_run_dir(config: TrainConfig) -> str:
    first = config.data.train if isinstance(config.data.train, str) else config.data.train[0]
    name = "".join(c if c.isalnum() else "-" for c in Path(first).stem).strip("-") or "run"
    return f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
