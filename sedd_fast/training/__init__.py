"""Training on Hugging Face Accelerate: one process, or many under `accelerate launch` or torchrun.

    from sedd_fast.training import is_finished, load_config, resume, train

    result = train("book.txt", run_dir="runs/book", minutes=5)
    result = train(load_config("small", files=["mine.yaml"]))
    result = resume("runs/book")                      # after Ctrl-C, a crash, or kill -9
    is_finished("runs/book")                          # True: there is nothing to resume

A run directory holds config.yaml, tokenizer/, metrics.jsonl, tensorboard/, checkpoints/ and
export/ (`run_directory` describes each). `sedd_fast.load(run_dir)` reads the averaged weights and
the tokenizer.

All randomness of a step (order of the text, times, noise, dropout) is a function of (seed, step,
process, accumulation part), and a checkpoint holds all other state, so a resumed run has the losses
of an uninterrupted one. The exception is optim.schedule=cosine with training.max_minutes: those
learning rates depend on the measured time.

The step is that of the original SEDD: AdamW on the batch mean of the per-sequence score entropy (or
of the objective that `objective.type` selects), gradient clipping, linear warm-up, EMA with its own
warm-up (Lou, Meng, Ermon 2024, appendix C).
"""

from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.config import load_config
from sedd_fast.training.progress import (
    DiskFullError,
    HeldOut,
    NonFiniteLossError,
    OnStep,
    StepInfo,
    TrainingInterrupted,
    TrainResult,
    resume_command,
)
from sedd_fast.training.settings import TrainConfig

__all__ = [
    "DiskFullError",
    "HeldOut",
    "NonFiniteLossError",
    "OnStep",
    "StepInfo",
    "TrainConfig",
    "TrainResult",
    "TrainingInterrupted",
    "is_finished",
    "load_config",
    "resume",
    "resume_command",
    "train",
]
