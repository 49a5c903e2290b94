"""What training reports after each step and at its end, and the errors that stop it."""

import errno
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HeldOut:
    """A held-out estimate with the averaged weights: fixed sequences, fixed times, fixed noise.

    It is the training objective, averaged over its own distribution of times, for monitoring a
    run; the bound to report is `likelihood_bound`. `stderr` is the standard error of
    `nats_per_token` over sequences and their noise, None for one sequence. An objective that is not
    in nats has its own unit there, and None for bits.
    """

    step: int
    nats_per_token: float
    stderr: float | None
    bits_per_token: float | None
    bits_per_char: float | None


@dataclass(frozen=True)
class StepInfo:
    """The state of a run after a step.

    `loss` is the objective per token, in nats unless bits are None. `expected_steps` is the number
    of steps at the end of the run, at the pace of the last fifty; a limit of minutes may end it
    before `n_iters`.
    """

    step: int
    n_iters: int
    expected_steps: int
    loss: float
    bits_per_token: float | None
    bits_per_char: float | None
    lr: float
    grad_norm: float
    tokens_per_second: float
    elapsed_seconds: float
    eta_seconds: float
    held_out: HeldOut | None


@dataclass(frozen=True)
class TrainResult:
    """A finished run. Without held-out text `held_out` is None; else its source is named."""

    run_dir: Path
    step: int
    checkpoint: Path
    export: Path
    held_out: HeldOut | None
    held_out_source: str


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient was not finite; the weights are as they were before the step.

    `path` is a file for `torch.load` with the step, the batch ("x_0"), its times ("t") and losses.
    The command line exits with `exit_code`, 1.
    """

    exit_code = 1

    def __init__(self, what: str, step: int, t: Sequence[float], path: Path, advice: str) -> None:
        times = ", ".join(f"{value:.6g}" for value in t[:8])
        super().__init__(
            f"the {what} of step {step} is not finite (t = {times}); the batch is saved in {path}; "
            f"the weights are unchanged. {advice}"
        )
        self.step, self.t, self.path = step, tuple(t), path


class DiskFullError(OSError):
    """A file of the run could not be written for lack of space; the last checkpoint is intact.

    The command line exits with `exit_code`, 1.
    """

    exit_code = 1


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def lack_of_space(error: BaseException | None) -> str | None:
    """The system's words for it, where an error or one of its causes is a lack of disk space."""
    while error is not None:
        # safetensors and tokenizers write the number into the message of their own exceptions.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else error.errno if isinstance(error, OSError) else None
        if number in _NO_SPACE:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, after the state was saved. `command` resumes the run.

    The command line exits with `exit_code`, 130.
    """

    exit_code = 130

    def __init__(self, run_dir: Path, step: int, command: str) -> None:
        super().__init__(f"stopped after step {step}, everything is saved; resume with: {command}")
        self.run_dir, self.step, self.command = run_dir, step, command


OnStep = Callable[[StepInfo], None]


def resume_command(run_dir: Path, processes: int = 1) -> str:
    """The command line that resumes a run, with the launcher of this process."""
    if processes == 1:
        launch = "sedd-fast"
    elif "ACCELERATE_MIXED_PRECISION" in os.environ:  # set only by `accelerate launch`
        launch = f"accelerate launch --num_processes {processes} -m sedd_fast"
    else:
        launch = f"torchrun --nproc_per_node {processes} -m sedd_fast"
    return f"{launch} train --resume {shlex.quote(str(run_dir))}"
