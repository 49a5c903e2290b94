"""Metrics of a run: metrics.jsonl, TensorBoard, Weights & Biases on request.

A line of metrics.jsonl is one JSON object with "step" and any of

    loss, bits_per_token, bits_per_char     training loss: mean since the line before
    lr, grad_norm, tokens_per_second, elapsed_seconds
    held_out_loss, held_out_bits_per_token, held_out_bits_per_char, held_out_stderr

Beside it, with data.format=prompt_completion, samples.jsonl has a line for every completion that
was drawn of a held-out prompt: "step", "prompt", "completion" and "reference", that of the data.

Held-out figures are those of the averaged weights. Losses are in nats per token;
`held_out_stderr` is the standard error of `held_out_loss` over sequences, null for one. An
objective that is not in nats has its own unit, and null for bits.
"""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sedd_fast.data.files import read_text, split_lines
from sedd_fast.extras import import_library
from sedd_fast.files.writing import write_text
from sedd_fast.training.run_directory import RunDirectory
from sedd_fast.training.settings import TrainConfig

_FLUSH_SECONDS = 10  # of TensorBoard's files; its own default is two minutes


class MetricsLog(ExitStack):
    """Writes records to metrics.jsonl and to the other trackers; closes them as a context manager.

    Lines of metrics.jsonl after `step` are dropped, where `step` is that from which the run resumes
    (0 for a new one): their steps will be run again, or the last line was cut off when the process
    was killed.

    Raises:
        ValueError: the settings ask for Weights & Biases, which is not installed.
    """

    def __init__(self, run: RunDirectory, config: TrainConfig, step: int) -> None:
        super().__init__()
        self._last = rewind(run.metrics, step)
        self._file = self.enter_context(run.metrics.open("a", encoding="utf-8"))
        self._trackers: list[Callable[[dict[str, float], int], object]] = []
        self._write_text: Callable[[str, str, int], object] | None = None  # TensorBoard's
        self._samples = run.samples
        self._sampled = rewind_samples(run.samples, step)
        if config.log.tensorboard:
            self._open_tensorboard(run.tensorboard, step)
        if config.log.wandb:
            self._open_wandb(run.path, config)

    def write(self, record: Mapping[str, float | int | None]) -> None:
        """Write one record; it must have "step". Values that are not finite become null.

        A record that repeats the last one, as a finished run that is resumed has it, is left out.
        """
        finite = {k: v for k, v in record.items() if v is not None and math.isfinite(v)}
        written = {k: finite.get(k) for k in record}
        if written == self._last:
            return
        self._last = written
        self._file.write(json.dumps(written) + "\n")
        self._file.flush()  # a killed process loses nothing, and tail -f shows each line at once
        step = int(finite.pop("step"))
        for tracker in self._trackers:
            tracker({_tag(k): v for k, v in finite.items()}, step)

    def write_samples(self, records: Sequence[Mapping[str, str]], step: int) -> None:
        """Write what was drawn at a step, unless it is there."""
        if step <= self._sampled:
            return
        self._sampled = step
        with self._samples.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"step": step, **record}) + "\n")
        if self._write_text is not None:
            shown = json.dumps(list(records), ensure_ascii=False, indent=2)
            self._write_text("held_out/completions", f"```json\n{shown}\n```", step)

    def sync(self) -> None:
        """Flush to the disk: a checkpoint must not be newer than the lines before it."""
        os.fsync(self._file.fileno())

    def _open_tensorboard(self, directory: Path, step: int) -> None:
        import_library("tensorboard", "train", "log.tensorboard=true")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(
            str(directory), purge_step=step + 1 if step else None, flush_secs=_FLUSH_SECONDS
        )

        def log(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = _without_writer_errors(threading.excepthook)
        self.callback(writer.close)
        self._trackers.append(log)
        self._write_text = writer.add_text

    def _open_wandb(self, path: Path, config: TrainConfig) -> None:
        wandb = import_library("wandb", "wandb", "log.wandb=true")
        run = wandb.init(
            project=config.log.wandb_project,
            name=path.name,
            id="-".join(path.absolute().parts[-2:]),
            resume="allow",
            dir=str(path),
            config=asdict(config),
        )
        self.callback(run.finish)
        self._trackers.append(lambda values, step: run.log(values, step=step))


def _without_writer_errors(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """A hook without the errors of TensorBoard's thread, which its next write raises again."""

    def shown(error: Any) -> None:
        if type(error.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            hook(error)

    return shown


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that is no record, such as one cut off, is left out.

    Raises:
        ValueError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"metrics: no file {str(path)!r}; a run writes RUN_DIR/metrics.jsonl")
    records = []
    for line in split_lines(read_text(file, "metrics")):
        with suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if _is_record(record)]


def _is_record(record: Any) -> bool:
    """Whether a value is an object of numbers, or null, with a count as "step"."""
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return False
    numbers = [value for value in record.values() if value is not None]
    kinds = {type(value) for value in numbers} <= {int, float}
    return kinds and all(abs(value) < 2**63 for value in numbers)


def rewind(path: Path, step: int) -> dict[str, Any] | None:
    """Drop the lines of metrics.jsonl after `step`; return the last that is left."""
    if not path.is_file():
        return None
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    if path.read_bytes() != text.encode():  # a reader such as tail -f keeps the file it opened
        write_text(path, text)
    return kept[-1] if kept else None


def rewind_samples(path: Path, step: int) -> int:
    """Drop the lines of samples.jsonl after `step`; return the last step that is left, or -1."""
    if not path.is_file():
        return -1
    kept, last = [], -1
    for line in split_lines(read_text(path, "samples")):
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            if (of_line := int(json.loads(line)["step"])) <= step:
                kept.append(line + "\n")
                last = max(last, of_line)
    text = "".join(kept)
    if path.read_bytes() != text.encode():
        write_text(path, text)
    return last


def _tag(name: str) -> str:
    held_out = name.removeprefix("held_out_")
    return f"train/{name}" if held_out == name else f"held_out/{held_out}"
