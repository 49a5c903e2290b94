"""One training run: the loop, reporting, and saving. `train` is the way in, `learner` the step."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sedd_fast.data.corpus import Corpus, load_corpus
from sedd_fast.data.tokenizers import Tokenizer, load_tokenizer
from sedd_fast.train.config import config_from_dict, save_config
from sedd_fast.train.held_out import held_out_loss
from sedd_fast.train.interrupt import StopRequest
from sedd_fast.train.metrics import MetricsLog
from sedd_fast.train.progress import (
    HeldOut,
    NonFiniteLossError,
    OnStep,
    StepInfo,
    TrainingInterrupted,
    TrainResult,
    resume_command,
)
from sedd_fast.train.run_directory import (
    RunDirectory,
    load_file,
    random_state,
    save_file,
    set_random_state,
    write_directory,
)
from sedd_fast.train.settings import TrainConfig
from sedd_fast.train.step import Learner, learning_rate

_log = logging.getLogger(__name__)


class Trainer:
    """One run: its model, its state, and the loop. Use `train` and `resume`."""

    def __init__(self, config: TrainConfig, run: RunDirectory, accelerator: Any) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self._check_batch()
        saved_path = run.latest()
        saved = load_file(saved_path / "state.pt") if saved_path else None
        if saved:
            _check_same_model(config, config_from_dict(saved["config"]))
        with accelerator.main_process_first():
            self.corpus = self._load_corpus()
        self.learner = Learner(config, self.corpus.tokenizer.vocab_size, accelerator)
        self.step, self.elapsed, self.held_out = 0, 0.0, None  # type: int, float, HeldOut | None
        self._window = [0.0, 0]  # sum and number of the losses since the last metrics line
        if saved_path and saved:
            self._restore(saved, saved_path)

    # Building

    def _check_batch(self) -> None:
        section, world = self.config.training, self.accelerator.num_processes
        if section.batch_size % (world * section.accum):
            raise ValueError(
                f"training.batch_size: {section.batch_size} is not divisible by {world} processes "
                f"times training.accum={section.accum}; the next size that is: "
                f"{-(-section.batch_size // (world * section.accum)) * world * section.accum}"
            )

    def _load_corpus(self) -> Corpus:
        c = self.config
        known: Tokenizer | None = None
        if self.run.config.is_file():  # a run to go on with: its vocabulary is fixed
            known = load_tokenizer(self.run.tokenizer)
        return load_corpus(c.data, c.model.length, c.training.seed, known)

    # The loop

    def fit(self, on_step: OnStep | None = None) -> TrainResult:
        """Run to the end, or to an interruption."""
        metrics = self._open_run()
        section = self.config.training
        try:
            with StopRequest() as stop:
                self._start_clock()
                while not self._finished():
                    loss, grad_norm, lr, stopping = self._train_step(stop.requested)
                    info = self._info(loss, grad_norm, lr)
                    self._record(metrics, info, due=self.step % section.log_freq == 0)
                    if _is_due(self.step, section.eval_freq) and not stopping:
                        self._evaluate(metrics)
                    if on_step is not None and metrics is not None:
                        on_step(replace(info, held_out=self.held_out))
                    if stopping or _is_due(self.step, section.snapshot_freq):
                        self._save(metrics)
                    if stopping:
                        self._interrupted()
                return self._finish(metrics)
        finally:
            if metrics is not None:
                metrics.close()

    def _open_run(self) -> MetricsLog | None:
        """Lay out the directory; the metrics log in the main process, None in the others."""
        metrics = None
        if self.accelerator.is_main_process:
            self.run.checkpoints.mkdir(parents=True, exist_ok=True)
            self.run.clean()
            if not self.run.config.is_file():
                write_directory(self.run.tokenizer, self.corpus.tokenizer.save)
            staged = self.run.config.with_name(".config.yaml")
            save_config(self.config, staged)
            os.replace(staged, self.run.config)
            log = self.config.log
            metrics = MetricsLog(
                self.run.metrics,
                self.step,
                self.run.tensorboard if log.tensorboard else None,
                _wandb_settings(self.config, self.run) if log.wandb else None,
            )
        self.accelerator.wait_for_everyone()
        _log.info(
            "%s: step %d, %d parameters, %s, %d process(es)",
            self.run.path, self.step, sum(p.numel() for p in self.learner.plain.parameters()),
            self.accelerator.device, self.accelerator.num_processes,
        )  # fmt: skip
        return metrics

    def _finished(self) -> bool:
        return self.config.training.is_over(self.step, self.elapsed)

    def _progress(self) -> float:
        section = self.config.training
        by_steps = self.step / section.n_iters
        return max(
            by_steps, self.elapsed / (60 * section.max_minutes) if section.max_minutes else 0
        )

    def _train_step(self, stop: bool) -> tuple[float, float, float, bool]:
        """One optimiser step: loss (nats per token), gradient norm, rate, and whether to stop."""
        step = self.step + 1
        lr = learning_rate(self.config.optim, step, self._progress())
        x_0 = self._next_batch()  # (B, L)
        mean = self.learner.accumulate(x_0, step).double().item()
        everyone = self._gather(mean, float(stop), self._clock())
        self._check_loss(everyone[:, 0], step, x_0)
        grad_norm = self.learner.clip_gradients()
        # With a loss scaler an infinite gradient is routine: the scaler skips the step.
        if not math.isfinite(grad_norm) and self.accelerator.scaler is None:
            self._fail("gradient", step, x_0)
        self.learner.apply(lr)
        self.step, self.elapsed = step, float(everyone[0, 2])
        self._pace.append((step, self.elapsed))
        loss = float(everyone[:, 0].mean()) / self.config.model.length
        return loss, grad_norm, lr, bool(everyone[:, 1].any())

    def _next_batch(self) -> Tensor:
        a, size = self.accelerator, self.config.training.batch_size
        return self.corpus.train.take(size, a.process_index, a.num_processes).to(a.device)

    def _gather(self, *values: float) -> Tensor:
        """(processes, len(values)) float64 on the CPU, the same in every process."""
        own = torch.tensor([values], dtype=torch.float64)
        if self.accelerator.num_processes == 1:
            return own
        return self.accelerator.gather(own.to(self.accelerator.device)).cpu()

    def _check_loss(self, gathered: Tensor, step: int, x_0: Tensor) -> None:
        finite = gathered.isfinite()
        if bool(finite.all()):
            return
        if bool(finite[self.accelerator.process_index]):  # that process names its file
            culprit = int((~finite).nonzero()[0])
            self._fail(f"loss in process {culprit}", step, x_0)
        self._fail("loss", step, x_0)

    def _fail(self, what: str, step: int, x_0: Tensor) -> None:
        path = self.run.path / f"nonfinite-step-{step:08d}-{self.accelerator.process_index}.pt"
        t, losses = self.learner.each_loss(x_0, step)
        content = {"step": step, "x_0": x_0.cpu(), "t": t.cpu(), "loss": losses.cpu()}
        save_file({**content, "seed": self.config.training.seed}, path)
        bad = ~losses.isfinite()
        times = (t[bad] if bool(bad.any()) else t).tolist()
        steps = self.run.steps()
        start = f"the checkpoint of step {steps[-1]}" if steps else "the start"
        command = resume_command(self.run.path, self.accelerator.num_processes)
        advice = f"To go on from {start} with a lower rate: {command} optim.lr=..."
        raise NonFiniteLossError(what, step, times, path, advice)

    # Reporting

    def _start_clock(self) -> None:
        self._began = time.monotonic() - self.elapsed
        self._pace: deque[tuple[int, float]] = deque([(self.step, self.elapsed)], maxlen=50)

    def _clock(self) -> float:
        return time.monotonic() - self._began

    def _bits(self, loss: float) -> dict[str, float | None]:
        """Bits per token and per character, where the objective is in nats."""
        bits = loss / math.log(2) if self.learner.objective.in_nats else None
        ratio = self.corpus.chars_per_token
        per_char = bits / ratio if bits is not None and ratio else None
        return {"bits_per_token": bits, "bits_per_char": per_char}

    def _info(self, loss: float, grad_norm: float, lr: float) -> StepInfo:
        (first, since), (last, now), section = self._pace[0], self._pace[-1], self.config.training
        seconds = max(now - since, 1e-9) / max(last - first, 1)  # per step, over the last fifty
        left = (section.n_iters - self.step) * seconds
        if section.max_minutes is not None:
            left = min(left, max(0.0, 60 * section.max_minutes - self.elapsed))
        return StepInfo(
            step=self.step,
            n_iters=section.n_iters,
            loss=loss,
            **self._bits(loss),
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=section.batch_size * self.config.model.length / seconds,
            elapsed_seconds=self.elapsed,
            eta_seconds=left,
            held_out=self.held_out,
        )

    def _record(self, metrics: MetricsLog | None, info: StepInfo, due: bool) -> None:
        self._window = [self._window[0] + info.loss, self._window[1] + 1]
        if not due:
            return
        mean = self._window[0] / self._window[1]
        self._window = [0.0, 0]
        if metrics is not None:
            shown = ("lr", "grad_norm", "tokens_per_second", "elapsed_seconds")
            rest = {name: getattr(info, name) for name in shown}
            metrics.write({"step": self.step, "loss": mean, **self._bits(mean), **rest})

    def _evaluate(self, metrics: MetricsLog | None) -> None:
        blocks, section = self.corpus.held_out, self.config.training
        done = self.held_out is not None and self.held_out.step == self.step
        if blocks is None or done:
            return
        a = self.accelerator
        micro = section.batch_size // (a.num_processes * section.accum)
        with self.learner.averaged_weights():
            losses = held_out_loss(
                self.learner.plain, blocks, self.learner.objective, section.eval_sequences, micro,
                a.device, (a.process_index, a.num_processes),
            ).double()  # fmt: skip
        sums = self._gather(len(losses), float(losses.sum()), float(losses.square().sum())).sum(0)
        self.held_out = self._summarise(*sums.tolist())
        if metrics is not None:
            h = self.held_out
            named: dict[str, float | None] = {"loss": h.nats_per_token, "stderr": h.stderr}
            named |= self._bits(h.nats_per_token)
            metrics.write({"step": h.step} | {f"held_out_{k}": v for k, v in named.items()})

    def _summarise(self, count: float, total: float, squares: float) -> HeldOut:
        mean = total / count
        variance = max(0.0, squares / count - mean**2) / max(count - 1, 1)
        return HeldOut(self.step, mean, math.sqrt(variance), **self._bits(mean))

    # Saving

    def _save(self, metrics: MetricsLog | None) -> Path:
        """Checkpoint and export; all processes call it."""
        final, staged = self.run.checkpoint(self.step), self.run.staging(self.step)
        main = self.accelerator.is_main_process
        complete = final.exists()
        self.accelerator.wait_for_everyone()
        if complete:
            return final
        if metrics is not None:
            metrics.sync()
            staged.mkdir()
        self.accelerator.wait_for_everyone()
        save_file(random_state(), staged / f"rng-{self.accelerator.process_index}.pt")
        if main:
            save_file(self._state(), staged / "state.pt")
        self.accelerator.wait_for_everyone()
        if main:
            self.run.commit(self.step, self.config.training.keep_last)
            write_directory(self.run.export, self._export)
        self.accelerator.wait_for_everyone()
        return final

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "elapsed": self.elapsed,
            "config": asdict(self.config),
            **self.learner.state_dict(),
            "data": self.corpus.train.state_dict(),
            "text": self.corpus.train.fingerprint,
            "window": list(self._window),
            "held_out": asdict(self.held_out) if self.held_out else None,
        }

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        if saved["text"] != self.corpus.train.fingerprint:
            raise ValueError(
                f"data.train: the text differs from that of the checkpoint {path}; put the text "
                "back as it was, or start a new run"
            )
        self.learner.load_state_dict(saved)
        self.corpus.train.load_state_dict(saved["data"])
        self.step, self.elapsed = saved["step"], saved["elapsed"]
        self._window = list(saved["window"])
        self.held_out = HeldOut(**saved["held_out"]) if saved["held_out"] else None
        random_path = path / f"rng-{self.accelerator.process_index}.pt"
        if random_path.is_file():  # more processes than before: the new ones have none
            set_random_state(load_file(random_path))

    def _export(self, directory: Path) -> None:
        with self.learner.averaged_weights():
            self.learner.plain.save_pretrained(directory)
        self.corpus.tokenizer.save(directory)

    def _interrupted(self) -> None:
        command = resume_command(self.run.path, self.accelerator.num_processes)
        raise TrainingInterrupted(self.run.path, self.step, command)

    def _finish(self, metrics: MetricsLog | None) -> TrainResult:
        self._evaluate(metrics)
        checkpoint = self._save(metrics)
        return TrainResult(self.run.path, self.step, checkpoint, self.run.export, self.held_out)


_GRAPHS = {"absorb": "absorbing"}  # the original's name and ours


def _check_same_model(config: TrainConfig, saved: TrainConfig) -> None:
    # The objective first: what it needs of the model follows it, and is not what a person changed.
    for section in ("objective", "model", "graph", "noise"):
        now, before = (_fixed(c, section) for c in (config, saved))
        for key, value in before.items():
            if now[key] != value and key != "dropout":
                raise ValueError(
                    f"{section}.{key}: the run was trained with {value}, got {now[key]}; a resumed "
                    "run keeps its model and objective: start a new one with another run_dir"
                )


def _fixed(config: TrainConfig, section: str) -> dict[str, Any]:
    """A section by what its values mean."""
    values = {k: _GRAPHS.get(v, v) for k, v in asdict(getattr(config, section)).items()}
    return values | {"kind": config.network_kind} if section == "model" else values


def _wandb_settings(config: TrainConfig, run: RunDirectory) -> dict[str, Any]:
    return {
        "project": config.log.wandb_project,
        "name": run.path.name,
        "id": "-".join(run.path.absolute().parts[-2:]),
        "resume": "allow",
        "dir": str(run.path),
        "config": asdict(config),
    }


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
