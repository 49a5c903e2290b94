"""Starting and resuming training runs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sedd_fast.train.config import load_config
from sedd_fast.train.loop import Trainer
from sedd_fast.train.progress import OnStep, TrainResult, resume_command
from sedd_fast.train.run_directory import RunDirectory, load_file
from sedd_fast.train.settings import TrainConfig


def train(config: TrainConfig, on_step: OnStep | None = None) -> TrainResult:
    """Train a new model.

    Args:
        config: all settings; `run_dir` None creates runs/NAME-DATE-TIME.
        on_step: called in the main process after every step.

    Raises:
        ValueError: a setting or a text is unusable, or the directory already holds a run.
        NonFiniteLossError: the loss or gradient is not finite.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    from accelerate.utils import broadcast_object_list

    accelerator = make_accelerator(config)
    # The processes must agree on the directory, although their clocks may differ.
    [path] = broadcast_object_list([config.run_dir or _default_run_dir(config)])
    run = RunDirectory(path)
    if run.config.exists():
        raise ValueError(
            f"run_dir: {run.path} already holds a run; resume with: "
            f"{resume_command(run.path, accelerator.num_processes)}; or choose another run_dir"
        )
    accelerator.wait_for_everyone()
    return Trainer(replace(config, run_dir=str(run.path)), accelerator).fit(on_step)


def resume(
    run_dir: str | Path, overrides: Sequence[str] = (), on_step: OnStep | None = None
) -> TrainResult:
    """Resume a run from its newest checkpoint (from the start if it has none yet).

    Args:
        run_dir: a directory that `train` created.
        overrides: settings to change, such as "training.n_iters=20000".

    Raises:
        ValueError: no run there, or an override that does not fit the saved weights or text.
        NonFiniteLossError, TrainingInterrupted: as `train`.
    """
    run = RunDirectory(run_dir)
    if not run.config.is_file():
        raise ValueError(f"run_dir: {run.path} holds no run (no config.yaml); check the path")
    config = replace(load_config(None, [run.config], overrides), run_dir=str(run.path))
    return Trainer(config, make_accelerator(config)).fit(on_step)


def is_finished(run_dir: str | Path) -> bool:
    """Whether the directory holds a run that has reached the end that its settings define.

    Raises:
        ValueError: its settings or its newest checkpoint cannot be read.
    """
    run = RunDirectory(run_dir)
    newest = run.latest() if run.config.is_file() else None
    if newest is None:
        return False
    saved = load_file(newest / "state.pt", mmap=True)
    section = load_config(files=[run.config]).training
    return section.is_over(saved["step"], saved["elapsed"])


def make_accelerator(config: TrainConfig) -> Any:
    """Accelerate's `Accelerator` in the precision and on the device of the settings.

    Raises:
        ValueError: the launcher asks for sharded training (FSDP, DeepSpeed, Megatron-LM).
    """
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


def _default_run_dir(config: TrainConfig) -> str:
    first = config.data.train if isinstance(config.data.train, str) else config.data.train[0]
    name = "".join(c if c.isalnum() else "-" for c in Path(first).stem).strip("-") or "run"
    return f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
