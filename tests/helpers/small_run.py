"""A run that trains in a second, on words of a few characters."""

import random
from pathlib import Path

from sedd_fast.cli import main

NETWORK = {"hidden_size": 16, "n_heads": 2, "n_blocks": 1, "length": 32, "cond_dim": 8}
SMALL = [
    *(f"model.{name}={value}" for name, value in NETWORK.items()),
    "training.batch_size=8", "training.n_iters=25", "optim.warmup=5",
    "training.max_minutes=null", "training.log_freq=5", "training.eval_freq=0",
    "training.snapshot_freq=0", "training.cpu=true", "log.tensorboard=false",
    "data.tokenizer=characters", "optim.type=adamw", "optim.lr=1.5e-3", "optim.beta2=0.999",
    "training.ema=0.999", "objective.type=score_entropy",
]  # fmt: skip


def write_words(path: Path) -> Path:
    """A text of 1,500 words."""
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dogs ", "ran\n"]
    path.write_text("".join(random.Random(0).choices(words, k=1500)))
    return path


def train_small(path: Path, text: Path, *settings: str) -> Path:
    """The run `path`, trained on `text`; `settings` change those of SMALL."""
    chosen = [*SMALL, *settings, f"data.train={text}"]
    assert main(["train", *chosen, "--run-dir", str(path)]) == 0
    return path
