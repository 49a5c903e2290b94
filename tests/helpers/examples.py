"""A task that a small network learns in seconds: the next letter of the alphabet, twice."""

import json
from pathlib import Path
from typing import Any

from sedd_fast.training.config import load_config
from sedd_fast.training.settings import TrainConfig

LETTERS = "abcdefgh"


def rows() -> list[dict[str, str]]:
    """ "a>" is completed by "bb", "ab>" by "bbcc"."""
    following = dict(zip(LETTERS, LETTERS[1:] + LETTERS[0], strict=True))
    texts = [*LETTERS, *(a + b for a in LETTERS for b in LETTERS)]
    return [
        {"prompt": f"{text}>", "completion": "".join(2 * following[c] for c in text)}
        for text in texts
    ]


def write_rows(path: Path, found: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def settings(data: Path, run_dir: Path, *more: str) -> TrainConfig:
    """12 steps of a network of width 16 on them, estimates and checkpoints every 4; and `more`."""
    tiny = [
        "model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1", "model.length=16",
        "model.cond_dim=8", "training.batch_size=4", "training.n_iters=12", "optim.lr=1e-2",
        "training.max_minutes=null", "training.log_freq=1", "training.eval_freq=4",
        "training.eval_sequences=8", "training.snapshot_freq=4", "training.cpu=true",
        "optim.type=adamw", "optim.warmup=4", "log.tensorboard=false", "data.held_out=0.1",
        "data.tokenizer=bytes", "data.format=prompt_completion",
    ]  # fmt: skip
    here = [f"run_dir={run_dir}", f"data.train={data}"]
    return load_config("tiny", overrides=[*tiny, *here, *more])
