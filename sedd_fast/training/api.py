"""Starting and resuming training runs."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from sedd_fast.extras import import_library
from sedd_fast.files.hub import near
from sedd_fast.names import MIXED_PRECISIONS, Preset
from sedd_fast.training import saved_state
from sedd_fast.training.config import Overrides, changed, load_config, load_run_config
from sedd_fast.training.lock import run_lock
from sedd_fast.training.loop import Trainer
from sedd_fast.training.progress import OnStep, TrainResult, resume_command
from sedd_fast.training.run_directory import RunDirectory, load_file
from sedd_fast.training.settings import TrainConfig, TrainingSection
from sedd_fast.training.step import rate_factor


def train(
    text: str | Path | Sequence[str | Path] | TrainConfig,
    on_step: OnStep | None = None,
    *,
    preset: Preset | None = None,
    run_dir: str | Path | None = None,
    minutes: float | None = None,
    overrides: Overrides = (),
    progress: bool = True,
) -> TrainResult:
    """Train a new model on a text; `sedd_fast.load(result.run_dir)` reads it.

    Args:
        text: a file, a glob, a list of these, "pydoc" (the built-in text), or a data set's name; or
            all settings, from `load_config`.
        on_step: called in the main process after every step, in place of the display.
        preset: the settings to start from: "tiny" (the default: subwords, five minutes on a
            laptop), "small" (12 x 768, as published), "medium" (24 x 1024).
        run_dir: a new directory for all that the run writes; None: runs/NAME-DATE-TIME.
        minutes: training time in minutes; None: that of the preset.
        overrides: other settings, which win, as in `load_config`: {"optim.lr": 1e-3}, or
            {"model.init": "runs/base"} to start from trained weights.
        progress: show the state on stderr unless there is an `on_step`: live on a terminal, a line
            every ten seconds elsewhere.

    Returns:
        The run directory, its newest checkpoint, its export, and the last held-out estimate.

    Raises:
        TypeError: `text` is none of these.
        ValueError: a setting or a text is unusable, the directory already holds a run or is in use
            by another process, or `accelerate` is not installed.
        FileNotFoundError: `model.init` names no network.
        NonFiniteLossError: the loss or gradient is not finite.
        DiskFullError: a file could not be written for lack of space.
        TrainingInterrupted: Ctrl-C, SIGTERM or SIGHUP; the state is saved, and `resume(run_dir)`
            resumes the run.

    Example:
        >>> result = train("book.txt", run_dir="runs/book", minutes=5, overrides={"optim.lr": 1e-3})
        >>> print(sedd_fast.load(result.run_dir).infill("The [8] fox"))
    """
    config = _settings(text, preset, run_dir, minutes, overrides)
    if config.run_dir == "":
        raise ValueError("run_dir: got an empty name; leave it out for runs/NAME-DATE-TIME")
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
        config = replace(config, run_dir=str(run.path))
        with _shown(config, on_step, progress) as shown:
            return Trainer(config, accelerator).fit(shown)


def resume(
    run_dir: str | Path,
    overrides: Overrides = (),
    on_step: OnStep | None = None,
    progress: bool = True,
) -> TrainResult:
    """Resume a run from its newest checkpoint (from the start if it has none yet).

    Args:
        run_dir: a directory that `train` created.
        overrides: settings to change, such as {"training.n_iters": 20_000} or
            ["training.n_iters=20000"].
        on_step, progress: as in `train`.

    Raises:
        ValueError: no run there, an override that does not fit the saved weights or text, a damaged
            checkpoint, or a run that another process trains.
        FileNotFoundError: the run has no checkpoint yet, and `model.init` names no network.
        NonFiniteLossError, DiskFullError, TrainingInterrupted: as `train`.
    """
    run = RunDirectory(run_dir)
    if not run.config.is_file():
        close = "" if run.path.exists() else near(run.path, folders=True)
        raise ValueError(
            f"run_dir: {run.path}{close} holds no run (no config.yaml); check the path"
        )
    config = replace(load_run_config(run.config, overrides), run_dir=str(run.path))
    accelerator = make_accelerator(config)
    with _locked(run, accelerator), _shown(config, on_step, progress) as shown:
        return Trainer(config, accelerator).fit(shown)


def _settings(
    text: Any,
    preset: Preset | None,
    run_dir: str | Path | None,
    minutes: float | None,
    overrides: Overrides,
) -> TrainConfig:
    """The settings that the arguments of `train` describe."""
    changes: dict[str, Any] = {}
    if isinstance(text, TrainConfig):
        config = text
        if preset is not None:
            raise ValueError(f"preset: all settings are given; leave out preset={preset!r}")
    else:
        config = load_config(preset or "tiny")
        names = [text] if isinstance(text, str | Path) else text
        if not isinstance(names, list | tuple) or not all(isinstance(n, str | Path) for n in names):
            raise TypeError(
                "text must be a file's name, a list of them, or settings of load_config, got "
                f"{type(text).__name__}"
            )
        changes["data.train"] = str(text) if names is not text else [*map(str, names)]
    if run_dir is not None:
        changes["run_dir"] = str(run_dir)
    if minutes is not None:
        changes["training.max_minutes"] = minutes
    config = changed(config, changes, overrides)
    for name, given in (("text", config.data.train), ("data.valid", config.data.valid or [])):
        if any(map(_is_text_itself, [given] if isinstance(given, str) else given)):
            raise ValueError(f"{name}: a file's name is expected; write the text to a file")
    return config


def _is_text_itself(name: str) -> bool:
    """Whether a name of files must be meant as their content."""
    longest = max(map(len, name.split(os.sep)))
    return longest > 255 or ("\n" in name and not Path(name).exists())


@contextmanager
def _shown(config: TrainConfig, on_step: OnStep | None, progress: bool) -> Iterator[OnStep | None]:
    """What to call after every step: `on_step`, or a display of the progress."""
    if on_step is not None or not progress:
        yield on_step
        return
    from sedd_fast.training.display import TrainingDisplay

    with TrainingDisplay(str(config.run_dir)) as display:
        yield display


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
    step, elapsed = _reached(run, steps[-1])
    section = load_run_config(run.config).training
    return section.is_over(step, elapsed) and run.exported_step() == step


def _reached(run: RunDirectory, step: int) -> tuple[int, float]:
    """The steps and the seconds of training of a checkpoint; ValueError if it is damaged."""
    file = run.checkpoint(step) / "state.pt"
    saved = load_file(file, mmap=True)
    with saved_state.blamed_on(file):
        return saved_state.progress(saved, step)


def outlook(run_dir: str | Path, overrides: Sequence[str] = ()) -> str | None:
    """What `resume` will do with a finished run or with another end of a cosine schedule.

    None where the run is resumed as if it had not been interrupted, or cannot be read.
    """
    run = RunDirectory(run_dir)
    if not run.config.is_file() or not (steps := run.steps()):
        return None
    before, now = (load_run_config(run.config, each) for each in ((), overrides))
    try:
        step, elapsed = _reached(run, steps[-1])
    except ValueError:  # resume says what is wrong
        return None
    done = now.training.progress(step, elapsed)
    settings = _longer(now.training, step, elapsed)
    after = now if done < 1 else load_run_config(run.config, [*overrides, *settings])
    parts = [before.training.progress(step, elapsed), after.training.progress(step, elapsed)]
    change = ""
    stretched = before.optim.schedule == "cosine"
    if now.optim.schedule == "cosine" and (parts[0] != parts[1] or not stretched):
        old, new = (
            config.optim.lr * rate_factor(config.optim, step, part)
            for config, part in zip((before, after), parts, strict=True)
        )
        how = f"stretched from {min(parts[0], 1):.0%} to" if stretched else "set, at"
        constant = " ".join(f"{name}=RATE" for name in now.optim.rates)
        change = (
            f"optim.schedule=cosine is {how} {parts[1]:.0%} "
            f"done, so the learning rate {'rises' if new > old else 'falls'} from {old:.2g} to "
            f"{new:.2g} at once and is {now.optim.lr * now.optim.lr_min:.2g} at the new end; "
            f"optim.schedule=constant {constant} keeps one rate"
        ) * (new != old)
    if done < 1:
        return change or None
    names = {setting.partition("=")[0] for setting in settings}
    kept = [shlex.quote(each) for each in overrides if each.partition("=")[0] not in names]
    command = " ".join([resume_command(run.path), *kept, *settings])
    return (
        f"nothing is left to train: the run ended at step {step:,}; to go on: {command}"
        + f" ({change})" * bool(change)
    )


def longer(run_dir: str | Path) -> str:
    """The settings that double the length of a run that has ended."""
    run = RunDirectory(run_dir)
    reached = _reached(run, run.steps()[-1])
    return " ".join(_longer(load_run_config(run.config).training, *reached))


def _longer(section: TrainingSection, step: int, elapsed: float) -> list[str]:
    """Every limit that `step` steps and `elapsed` seconds have reached, doubled."""
    settings, limit = [], section.max_minutes
    if limit is not None and elapsed >= 60 * limit:
        settings.append(f"training.max_minutes={2 * max(limit, elapsed / 60) or 1:.3g}")
    if step >= section.n_iters:
        settings.append(f"training.n_iters={2 * step}")
    return settings


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
    if precision not in MIXED_PRECISIONS:
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
    name = "".join(c if c.isalnum() else "-" for c in Path(first).stem)[:80].strip("-") or "run"
    return f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}"
