"""A small training run for tests: its text, its settings, and its log."""

import random
from pathlib import Path

from sedd_fast.training.config import load_config
from sedd_fast.training.metrics import read_metrics
from sedd_fast.training.settings import TrainConfig

WORDS = ["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dogs ", "ran\n"]


def write_text(path: Path) -> Path:
    """Write 1,500 words in a fixed random order."""
    path.write_text("".join(random.Random(0).choices(WORDS, k=1500)))
    return path


def write_letters(path: Path) -> Path:
    """Write 8,000 letters, most of them the same: soon learnt, by any objective."""
    often = [40, 1, 1, 1, 1, 1, 1, 1]
    path.write_text("".join(random.Random(0).choices("abcdefgh", often, k=8000)))
    return path


def settings(text_file: Path, run_dir: Path, *more: str) -> TrainConfig:
    """12 steps of a network of width 16, estimates every 4, checkpoints every 3; and `more`."""
    tiny = [
        "model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1", "model.length=16",
        "model.cond_dim=8", "model.dropout=0.1", "training.batch_size=4", "training.n_iters=12",
        "training.max_minutes=null", "training.log_freq=1", "training.eval_freq=4",
        "training.eval_sequences=8", "training.snapshot_freq=3", "training.cpu=true",
        "training.ema=0.999", "optim.type=adamw", "optim.lr=1.5e-3", "optim.beta2=0.999",
        "optim.warmup=4", "log.tensorboard=false", "data.random_offset=true",
        "data.tokenizer=characters", "objective.type=score_entropy",
    ]  # fmt: skip
    here = [f"run_dir={run_dir}", f"data.train={text_file}"]
    return load_config("tiny", overrides=[*tiny, *here, *more])


def losses(run_dir: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of everything in metrics.jsonl that does not depend on the clock."""
    records = read_metrics(Path(run_dir) / "metrics.jsonl")
    names = ("loss", "grad_norm", "lr", "held_out_loss", "held_out_stderr")
    return [(r["step"], n, r[n]) for r in records for n in names if n in r]
