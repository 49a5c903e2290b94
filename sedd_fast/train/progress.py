"""What training tells: about each step, about its end, and why it stopped."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HeldOut:
    """A held-out estimate with the averaged weights: fixed sequences, fixed times, fixed noise.

    It is the training objective, at its own times, for watching a run; the bound to report
    is `likelihood_bound`. `stderr` is that of `nats_per_token`, over sequences. An objective that
    is not in nats gives its own value there, and None for bits.
    """

    step: int
    nats_per_token: float
    stderr: float
    bits_per_token: float | None
    bits_per_char: float | None


@dataclass(frozen=True)
class StepInfo:
    """What a progress display needs after each step.

    `loss` is the objective per token: in nats, or, where bits are None, in none.
    """

    step: int
    n_iters: int
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
    """A finished run. `held_out` is None where no text was held out."""

    run_dir: Path
    step: int
    checkpoint: Path
    export: Path
    held_out: HeldOut | None


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient was not finite; the weights are as they were before the step.

    `path` is a file with the step, the batch ("x_0"), its times ("t") and losses, for `torch.load`.
    """

    def __init__(self, what: str, step: int, t: Sequence[float], path: Path, advice: str) -> None:
        times = ", ".join(f"{value:.6g}" for value in t[:8])
        super().__init__(
            f"the {what} of step {step} is not finite (t = {times}); the batch is saved in {path}; "
            f"the weights were not touched. {advice}"
        )
        self.step, self.t, self.path = step, tuple(t), path


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the state was saved. `command` goes on from there.

    A command line ends with `exit_code`, 130.
    """

    exit_code = 130

    def __init__(self, run_dir: Path, step: int, command: str) -> None:
        super().__init__(f"stopped after step {step}, everything is saved; go on with: {command}")
        self.run_dir, self.step, self.command = run_dir, step, command


OnStep = Callable[[StepInfo], None]


def resume_command(run_dir: Path, processes: int = 1) -> str:
    """The command line that goes on with a run, launched as this process was."""
    if processes == 1:
        launch = "sedd-fast"
    elif "ACCELERATE_MIXED_PRECISION" in os.environ:  # set by `accelerate launch` alone
        launch = f"accelerate launch --num_processes {processes} -m sedd_fast"
    else:
        launch = f"torchrun --nproc_per_node {processes} -m sedd_fast"
    return f"{launch} train --resume {shlex.quote(str(run_dir))}"
