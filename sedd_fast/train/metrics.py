"""Metrics of a run: metrics.jsonl always; TensorBoard where installed; Weights & Biases if asked.

A line of metrics.jsonl is one JSON object with "step" and any of

    loss, bits_per_token, bits_per_char     training: mean since the line before, EMA not applied
    lr, grad_norm, tokens_per_second, elapsed_seconds
    held_out_loss, held_out_bits_per_token, held_out_bits_per_char, held_out_stderr     EMA weights

Losses are in nats per token, as is `held_out_stderr`, over sequences; an objective that is not in
nats has its own unit and null for bits.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class MetricsLog:
    """Writes records to metrics.jsonl and to the extra sinks.

    Args:
        path: metrics.jsonl. Lines after `step` are dropped: the steps they tell of will be run
            again, or were cut off by the end of the process.
        step: the step from which the run goes on; 0 for a new one.
        tensorboard: directory of the event files, or None.
        wandb: arguments of `wandb.init`, or None.

    Raises:
        ValueError: Weights & Biases was asked for and is not installed.
    """

    def __init__(
        self,
        path: Path,
        step: int = 0,
        tensorboard: Path | None = None,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        rewind(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = _open_tensorboard(tensorboard, step) if tensorboard else None
        self._wandb = _open_wandb(wandb) if wandb is not None else None

    def write(self, record: Mapping[str, float | int | None]) -> None:
        """One record; it must have "step". Values that are not finite become null."""
        finite = {k: v for k, v in record.items() if v is not None and math.isfinite(v)}
        line = {k: finite.get(k) for k in record}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a killed process loses nothing that was written
        step = int(line["step"] or 0)
        numbers = {k: v for k, v in finite.items() if k != "step"}
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(_tag(name), value, step)
        if self._wandb is not None:
            self._wandb.log({_tag(k): v for k, v in numbers.items()}, step=step)

    def sync(self) -> None:
        """Flush to the disk: a checkpoint must not be newer than the lines before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out.

    Raises:
        ValueError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"metrics: no file {str(path)!r}; a run writes RUN_DIR/metrics.jsonl")
    records = (_parse(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [record for record in records if record is not None]


def rewind(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`."""
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    staged = path.with_name(f".{path.name}")
    with staged.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _tag(name: str) -> str:
    if name.startswith("held_out_"):
        return f"held_out/{name.removeprefix('held_out_')}"
    return f"train/{name}"


def _open_tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.info("TensorBoard is not installed; metrics.jsonl holds the same figures")
        return None
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)


def _open_wandb(settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "log.wandb: Weights & Biases is not installed: pip install wandb, or log.wandb=false"
        ) from error
    return wandb.init(**settings)
