"""The training loop of one run: steps, metrics, held-out estimates and checkpoints.

`api` starts it; `step.Learner` makes the optimiser steps.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sedd_fast.data.batches import Batch
from sedd_fast.data.corpus import load_corpus
from sedd_fast.data.examples import Examples
from sedd_fast.data.tokenizers import load_tokenizer
from sedd_fast.models.sedd import SEDD
from sedd_fast.training import saved_state
from sedd_fast.training.config import check_unchanged, config_from_dict, save_config
from sedd_fast.training.held_out import draw_completions, mean_loss
from sedd_fast.training.initial_weights import read_initial
from sedd_fast.training.interrupt import StopRequest
from sedd_fast.training.metrics import MetricsLog
from sedd_fast.training.networks import new_network
from sedd_fast.training.progress import (
    DiskFullError,
    HeldOut,
    NonFiniteLossError,
    OnStep,
    StepInfo,
    TrainingInterrupted,
    TrainResult,
    lack_of_space,
    resume_command,
)
from sedd_fast.training.run_directory import (
    RunDirectory,
    load_file,
    random_state,
    save_file,
    set_random_state,
    write_directory,
    write_export,
)
from sedd_fast.training.settings import TrainConfig
from sedd_fast.training.step import Learner, rate_factor

_log = logging.getLogger(__name__)


class Trainer:
    """One run: its model, its state, and the loop. Use `train` and `resume`, which lock the run.

    Args:
        config: all settings; `run_dir` must be set. The newest checkpoint there is restored.
        accelerator: made by `api.make_accelerator`.
    """

    def __init__(self, config: TrainConfig, accelerator: Any) -> None:
        assert config.run_dir is not None
        # The precision that the launcher chose becomes a setting: a resumed run keeps it.
        section = replace(config.training, mixed_precision=accelerator.mixed_precision)
        self.config, self.accelerator = replace(config, training=section), accelerator
        self.run = RunDirectory(config.run_dir)
        self._check_batch()
        self._checkpoint = self.run.latest()
        saved = None
        if self._checkpoint:
            saved = load_file(self._checkpoint / "state.pt")
            self._check_settings(saved, self._checkpoint)
        # The vocabulary of a run is fixed by its first start.
        tokenizer = load_tokenizer(self.run.tokenizer) if self.run.config.is_file() else None
        weights = None
        with accelerator.main_process_first():
            if config.model.init is not None and self._checkpoint is None:
                self.config, tokenizer, weights = read_initial(self.config, tokenizer)
            self.corpus = load_corpus(
                config.data, config.model.length, config.training.seed, tokenizer
            )
        if saved and self._checkpoint:
            self._check_saved(saved, self._checkpoint)
        self.learner = Learner(self.config, self.corpus.tokenizer.vocab_size, accelerator, weights)
        self.step, self.elapsed, self.held_out = 0, 0.0, None  # type: int, float, HeldOut | None
        self._window = [0.0, 0]  # sum and number of the losses since the last metrics line
        self._metrics: MetricsLog | None = None  # of the main process, while `fit` runs
        if saved and self._checkpoint:
            self._restore(saved, self._checkpoint)

    def _check_batch(self) -> None:
        section, world = self.config.training, self.accelerator.num_processes
        parts = world * section.accum
        if section.batch_size % parts:
            raise ValueError(
                f"training.batch_size: {section.batch_size} is not divisible by {world} processes "
                f"times training.accum={section.accum}; the next size that is: "
                f"{-(-section.batch_size // parts) * parts}"
            )

    # The loop

    def fit(self, on_step: OnStep | None = None) -> TrainResult:
        """Run to the end, or to an interruption."""
        section = self.config.training
        with self._disk_errors(), self._open_run(), StopRequest() as stop:
            if self._checkpoint is not None:
                if _is_due(self.step, section.eval_freq):
                    self._evaluate()  # where the run was stopped before it
                self._save()  # the export, where the run was killed before it
            self._began = time.monotonic() - self.elapsed
            # The last fifty steps: (step, seconds since the start of the run, tokens since `fit`).
            self._pace: deque[tuple[int, float, int]] = deque(maxlen=50)
            self._pace.append((self.step, self.elapsed, 0))
            while not section.is_over(self.step, self.elapsed):
                info, stopping = self._train_step(stop.requested)
                self._record(info)
                is_last = section.is_over(self.step, self.elapsed)
                if _is_due(self.step, section.eval_freq) and not stopping:
                    self._evaluate()
                if on_step is not None and self._metrics is not None:
                    try:
                        on_step(replace(info, held_out=self.held_out))
                    except OSError:
                        if not stop.requested:
                            raise
                        on_step = None  # it writes to a terminal that was closed: save first
                if is_last:
                    self._evaluate()
                if stopping or is_last or _is_due(self.step, section.snapshot_freq):
                    self._save()
                if stopping:
                    raise TrainingInterrupted(self.run.path, self.step, self._resume_command())
            self._evaluate()
            checkpoint = self._save()
        export, source = self.run.export, self.corpus.held_out_source
        return TrainResult(self.run.path, self.step, checkpoint, export, self.held_out, source)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Within the context a write without space for it is reported with what is intact."""
        try:
            yield
        except Exception as error:
            if (reason := lack_of_space(error)) is None:
                raise
            if self.accelerator.is_main_process:
                with suppress(OSError):
                    self.run.clean()
            latest = self.run.latest()
            kept = f"the checkpoint {latest} is intact" if latest else "it had no checkpoint yet"
            raise DiskFullError(
                f"run_dir: cannot write the run {self.run.path}: {reason.lower()}; {kept}; free "
                f"some space, then: {self._resume_command()}"
            ) from error

    def _open_run(self) -> ExitStack | nullcontext[None]:
        """Create the directory; the open metrics log in the main process."""
        if self.accelerator.is_main_process:
            self.run.check_directories()
            self.run.checkpoints.mkdir(parents=True, exist_ok=True)
            self.run.clean()
            if self._checkpoint is None:
                self.run.forget_export()  # of a checkpoint that was removed
            if not self.run.config.is_file():
                write_directory(self.run.tokenizer, self.corpus.tokenizer.save)
            save_config(self.config, self.run.config)
            self._metrics = MetricsLog(self.run, self.config, self.step)
        self.accelerator.wait_for_everyone()
        _log.info(
            "%s: step %d, %d parameters, %s, %d process(es)",
            self.run.path, self.step, sum(p.numel() for p in self.learner.plain.parameters()),
            self.accelerator.device, self.accelerator.num_processes,
        )  # fmt: skip
        return self._metrics or nullcontext()

    def _train_step(self, stop: bool) -> tuple[StepInfo, bool]:
        """One optimiser step; the bool says whether any process has been asked to stop."""
        step, config, a = self.step + 1, self.config, self.accelerator
        section = config.training
        factor = rate_factor(config.optim, step, section.progress(self.step, self.elapsed))
        batch = self.corpus.train.take(section.batch_size, a.process_index, a.num_processes)
        mean = self.learner.accumulate(batch, step).double().item()
        everyone = self._gather(mean, float(stop), time.monotonic() - self._began)
        finite = everyone[:, 0].isfinite().tolist()
        if not all(finite):
            # A process whose own loss is finite names the one whose loss is not.
            where = f" in process {finite.index(False)}" if finite[a.process_index] else ""
            self._fail(f"loss{where}", step, batch)
        grad_norm = self.learner.clip_gradients()
        # With a loss scaler an infinite gradient is routine: the scaler skips the step.
        if not math.isfinite(grad_norm) and a.scaler is None:
            self._fail("gradient", step, batch)
        self.learner.apply(factor)
        self.step, self.elapsed = step, float(everyone[0, 2])
        self._pace.append((step, self.elapsed, self._pace[-1][2] + batch.global_tokens))
        loss = float(everyone[:, 0].mean())
        return self._info(loss, factor * config.optim.lr, grad_norm), bool(everyone[:, 1].any())

    def _gather(self, *values: float) -> Tensor:
        """(processes, len(values)) float64 on the CPU, the same in every process."""
        own = torch.tensor([values], dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.gather(own).cpu()

    def _fail(self, what: str, step: int, batch: Batch) -> NoReturn:
        path = self.run.path / f"nonfinite-step-{step:08d}-{self.accelerator.process_index}.pt"
        t, losses = self.learner.each_loss(batch, step)
        content = {"step": step, "x_0": batch.tokens, "t": t.cpu(), "loss": losses.cpu()}
        save_file({**content, **batch.masks, "seed": self.config.training.seed}, path)
        bad = ~losses.isfinite()
        times = (t[bad] if bool(bad.any()) else t).tolist()
        steps = self.run.steps()
        start = f"the checkpoint of step {steps[-1]}" if steps else "the start"
        rates = " ".join(f"{name}=..." for name in self.config.optim.rates)
        advice = f"To resume from {start} with a lower rate: {self._resume_command()} {rates}"
        raise NonFiniteLossError(what, step, times, path, advice)

    def _resume_command(self) -> str:
        return resume_command(self.run.path, self.accelerator.num_processes)

    # Reporting

    def _bits(self, loss: float) -> dict[str, float | None]:
        """Bits per token and per character, where the objective is in nats."""
        bits = loss / math.log(2) if self.learner.objective.in_nats else None
        # A mean over documents is not one over tokens.
        ratio = None if self.learner.is_per_token else self.corpus.chars_per_token
        per_char = bits / ratio if bits is not None and ratio else None
        return {"bits_per_token": bits, "bits_per_char": per_char}

    def _info(self, loss: float, lr: float, grad_norm: float) -> StepInfo:
        section = self.config.training
        (first, since, read), (last, now, tokens) = self._pace[0], self._pace[-1]
        seconds = max(now - since, 1e-9) / max(last - first, 1)  # per step, over the last fifty
        left = (section.n_iters - self.step) * seconds
        if section.max_minutes is not None:
            left = min(left, max(0.0, 60 * section.max_minutes - self.elapsed))
        return StepInfo(
            step=self.step,
            n_iters=section.n_iters,
            expected_steps=min(section.n_iters, self.step + math.ceil(left / seconds)),
            loss=loss,
            **self._bits(loss),
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=(tokens - read) / max(now - since, 1e-9),
            elapsed_seconds=self.elapsed,
            eta_seconds=left,
            held_out=self.held_out,
        )

    def _record(self, info: StepInfo) -> None:
        """Add a step to the mean loss; write a metrics line where one is due."""
        self._window = [self._window[0] + info.loss, self._window[1] + 1]
        if not _is_due(self.step, self.config.training.log_freq):
            return
        mean = self._window[0] / self._window[1]
        self._window = [0.0, 0]
        shown = ("lr", "grad_norm", "tokens_per_second", "elapsed_seconds")
        self._write({"loss": mean, **self._bits(mean)} | {k: getattr(info, k) for k in shown})

    def _write(self, figures: dict[str, float | None]) -> None:
        if self._metrics is not None:
            self._metrics.write({"step": self.step, **figures})

    def _evaluate(self) -> None:
        """Estimate the held-out loss, unless this step has its estimate."""
        held_out = self.corpus.held_out
        if held_out is None or (self.held_out is not None and self.held_out.step == self.step):
            return
        with self.learner.averaged_weights():
            losses = self.learner.held_out_losses(held_out).double().cpu()
            self._draw_completions()
        mean, error = mean_loss(losses, self._gather)
        bits = self._bits(mean)
        self.held_out = HeldOut(self.step, mean, error, **bits)
        figures = {"loss": mean, "stderr": self.held_out.stderr, **bits}
        self._write({f"held_out_{name}": value for name, value in figures.items()})

    def _draw_completions(self) -> None:
        """Log completions of a few held-out prompts, drawn by the main process."""
        model, examples, most = self.learner.plain, self.corpus.held_out, self.config.log.samples
        if self._metrics is not None and most and isinstance(examples, Examples):
            assert isinstance(model, SEDD)  # a baseline is not trained on examples
            device, tokenizer = self.accelerator.device, self.corpus.tokenizer
            records = draw_completions(model, examples, tokenizer, most, device)
            self._metrics.write_samples(records, self.step)

    # Saving

    def _save(self) -> Path:
        """Write the checkpoint of this step and the export, unless there; all processes call it."""
        a, final = self.accelerator, self.run.checkpoint(self.step)
        complete = final.exists()
        a.wait_for_everyone()
        if not complete:
            self._write_checkpoint()
        if a.is_main_process and self.run.exported_step() != self.step:
            write_export(self.run, self.step, self._export)
        a.wait_for_everyone()
        return final

    def _write_checkpoint(self) -> None:
        a, staged = self.accelerator, self.run.checkpoint(self.step, staging=True)
        if self._metrics is not None:
            self._metrics.sync()
            staged.mkdir()
        a.wait_for_everyone()
        save_file(random_state(), staged / f"rng-{a.process_index}.pt")
        if a.is_main_process:
            save_file(self._state(), staged / "state.pt")
        a.wait_for_everyone()
        if a.is_main_process:
            self.run.commit(self.step, self.config.training.keep_last)

    def _export(self, directory: Path) -> None:
        with self.learner.averaged_weights():
            self.learner.plain.save_pretrained(directory)
        self.corpus.tokenizer.save(directory)
        if self.corpus.completion_lengths is not None:
            self.corpus.completion_lengths.save(directory)

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

    def _check_settings(self, saved: Any, checkpoint: Path) -> None:
        with saved_state.blamed_on(checkpoint / "state.pt"):
            trained = config_from_dict(saved_state.mapping(saved, "config"))
        check_unchanged(self.config, trained)

    def _check_saved(self, saved: Any, checkpoint: Path) -> None:
        """ValueError where a state is not of the text or, which is not built yet, the network."""
        vocab_size, file = self.corpus.tokenizer.vocab_size, checkpoint / "state.pt"
        with saved_state.blamed_on(file):
            text = saved_state.entry(saved, "text", lambda v: type(v) is str, "a fingerprint")
            blocks = self.config.model.n_blocks
            if len(saved_state.mapping(saved, "model")) < blocks:
                raise ValueError(f"model: too few weights for {blocks} blocks")
            with torch.device("meta"):
                like = new_network(self.config, vocab_size)[0].state_dict()
            saved_state.weights(saved, like)
        if not self.corpus.train.has_fingerprint(text):
            raise ValueError(
                f"data.train: the text differs from that of the checkpoint {checkpoint}; restore "
                "the original text, or start a new run"
            )

    def _restore(self, saved: Any, checkpoint: Path) -> None:
        with saved_state.blamed_on(checkpoint / "state.pt"):
            step, elapsed = saved_state.progress(saved, self.run.steps()[-1])
            window, held_out = saved_state.window(saved), saved_state.held_out(saved)
            position = saved_state.position(
                saved, self.corpus.tokenizer.vocab_size, self.corpus.train.state_dict()
            )
            self.learner.load_state_dict(saved, step)
            self.corpus.train.load_state_dict(position)
        self.step, self.elapsed, self._window = step, elapsed, window
        self.held_out = HeldOut(**held_out) if held_out else None
        own = checkpoint / f"rng-{self.accelerator.process_index}.pt"
        if own.is_file():  # absent for a process that the run did not have before
            states = load_file(own)
            with saved_state.blamed_on(own):
                set_random_state(saved_state.random_states(states))


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
