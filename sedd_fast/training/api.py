"""Starting and resuming training runs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from sedd_fast.extras import import_library
from sedd_fast.training import saved_state
from sedd_fast.training.config import load_config
from sedd_fast.training.lock import run_lock
from sedd_fast.training.loop import Trainer
from sedd_fast.training.progress import OnStep, TrainResult, resume_command
from sedd_fast.training.run_directory import RunDirectory, load_file
from sedd_fast.training.settings import TrainConfig


def train(config: TrainConfig, on_step: OnStep | None = None) -> TrainResult:
    """Train a new model.

    Args:
        config: all settings; `run_dir` None creates runs/NAME-DATE-TIME.
        on_step: called in the main process after every step.

    Raises:
        ValueError: a setting or a text is unusable, the directory already holds a run or is in use
            by another process, or `accelerate` is not installed.
        NonFiniteLossError: the loss or gradient is not finite.
        DiskFullError: a file could not be written for lack of space.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP; the state is saved.
    """
    accelerator = make_accelerator(config)
    from accelerate.utils import broadcast_object_list

    # The processes must agree on the directory, although their clocks may differ.
    [path] = broadcast_object_list([config.run_dir or _default_run_dir(config)])
    run = RunDirectory(path)
    with _locked(run, accelerator):
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
        ValueError: no run there, an override that does not fit the saved weights or text, a damaged
            checkpoint, or a run that another process trains.
        NonFiniteLossError, DiskFullError, TrainingInterrupted: as `train`.
    """
    run = RunDirectory(run_dir)
    if not run.config.is_file():
        raise ValueError(f"run_dir: {run.path} holds no run (no config.yaml); check the path")
    config = replace(load_config(None, [run.config], overrides), run_dir=str(run.path))
    accelerator = make_accelerator(config)
    with _locked(run, accelerator):
        return Trainer(config, accelerator).fit(on_step)


@contextmanager
def _locked(run: RunDirectory, accelerator: Any) -> Iterator[None]:
    """Hold the lock of the run directory; all processes raise the ValueError of the main one."""
    from accelerate.utils import broadcast_object_list

    with ExitStack() as stack:
        refusal = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(run_lock(run.path))
            except ValueError as error:
                refusal = str(error)
        [refusal] = broadcast_object_list([refusal])
        if refusal is not None:
            raise ValueError(refusal)
        yield


def is_finished(run_dir: str | Path) -> bool:
    """Whether the directory holds a run that has reached the end that its settings define.

    Its export must be that of the newest checkpoint; `resume` writes one that is missing.

    Raises:
        ValueError: its settings or its newest checkpoint cannot be read.
    """
    run = RunDirectory(run_dir)
    steps = run.steps() if run.config.is_file() else []
    if not steps:
        return False
    file = run.checkpoint(steps[-1]) / "state.pt"
    saved = load_file(file, mmap=True)
    with saved_state.blamed_on(file):
        step, elapsed = saved_state.progress(saved, steps[-1])
    section = load_config(files=[run.config]).training
    return section.is_over(step, elapsed) and run.exported_step() == step


#: Environment variables by which `accelerate launch` asks for training that is not supported here.
_SHARDED = ("USE_FSDP", "USE_DEEPSPEED", "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG")


def make_accelerator(config: TrainConfig) -> Any:
    """Accelerate's `Accelerator` in the precision and on the device of the settings.

    What `accelerate launch` or its configuration file sets is used for the processes, the device,
    torch.compile and, with `training.mixed_precision` None, the precision. `training.accum` alone
    rules gradient accumulation.

    Raises:
        ValueError: the launcher asks for sharded training (FSDP, DeepSpeed, Megatron-LM) or for
            fp8, or fp16 is asked for on a CPU, where Accelerate would ignore it; or Accelerate is
            not installed.
    """
    import_library("accelerate", "train", "training")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    for name in _SHARDED:
        if os.environ.get(f"ACCELERATE_{name}", "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate: sharded training is not supported (ACCELERATE_{name} is set); launch "
                "with plain data parallelism (accelerate launch --multi_gpu)"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # A second run in one Python process may ask for another precision or device.
        AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()  # a loop of the caller may have left accumulation half done
    section = config.training
    matmul_precision = torch.get_float32_matmul_precision()
    accelerator = Accelerator(
        mixed_precision=section.mixed_precision,
        cpu=section.cpu,
        # Given as a plugin it has precedence over ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    torch.set_float32_matmul_precision(matmul_precision)  # compiling would allow TF32
    precision = accelerator.mixed_precision
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"accelerate: mixed precision {precision} is not supported; set "
            "training.mixed_precision to no, bf16 or fp16"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "training.mixed_precision: fp16 needs a GPU; set it to no or bf16 on the CPU"
        )
    return accelerator


def _default_run_dir(config: TrainConfig) -> str:
    first = config.data.train if isinstance(config.data.train, str) else config.data.train[0]
    name = "".join(c if c.isalnum() else "-" for c in Path(first).stem).strip("-") or "run"
    return f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
