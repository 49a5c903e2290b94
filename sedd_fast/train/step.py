"""What is learnt, and one step of it: model, optimiser and moving average under Accelerate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.losses.objective import stratified_times
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.models.networks import AnyNetwork
from sedd_fast.train.held_out import seeds
from sedd_fast.train.networks import AnyObjective, new_network
from sedd_fast.train.settings import OptimConfig, TrainConfig


def learning_rate(config: OptimConfig, step: int, progress: float) -> float:
    """The rate lr * min(step / warmup, 1), times a cosine from 1 to lr_min over the run."""
    rate = config.lr * min(step / config.warmup, 1.0) if config.warmup else config.lr
    if config.schedule == "cosine":
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        rate *= config.lr_min + (1 - config.lr_min) * cosine
    return rate


class Learner:
    """The network with its optimiser and its average.

    A step is `accumulate`, then `clip_gradients`, then `apply`; until `apply` nothing has changed
    but the gradients. `model` is what Accelerate made of the network, `plain` the network itself.
    """

    def __init__(self, config: TrainConfig, vocab_size: int, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        optim, section = config.optim, config.training
        torch.manual_seed(section.seed)
        model, self.objective = new_network(config, vocab_size)
        self._mean = replace(self.objective, reduction="mean")  # whose head need not wait
        model.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.plain: AnyNetwork = accelerator.unwrap_model(self.model)  # keeps autocast, sheds DDP
        self.ema = ExponentialMovingAverage(self.plain.parameters(), section.ema)

    def accumulate(self, x_0: Tensor, step: int) -> Tensor:
        """Add the gradient of a batch (B, L): its mean loss in nats per sequence, ()."""
        self.plain.train()
        accum = self.config.training.accum
        losses = []
        for number, part in enumerate(x_0.chunk(accum)):
            last = number == accum - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(self._mean, self.model, part, step, number)[1]  # ()
                self.accelerator.backward(loss / accum)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def each_loss(self, x_0: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Times and losses (nats per sequence) of a batch as `accumulate` drew them, each (B,)."""
        parts = enumerate(x_0.chunk(self.config.training.accum))
        # Not under DDP: one process may ask alone.
        drawn = [self._loss(self.objective, self.plain, part, step, n) for n, part in parts]
        t, losses = zip(*drawn, strict=True)
        return torch.cat(t), torch.cat(losses)

    def _loss(
        self, objective: AnyObjective, model: nn.Module, x_0: Tensor, step: int, part: int
    ) -> tuple[Tensor, Tensor]:
        """Times (B,) of one part of a batch, and its loss."""
        device = self.accelerator.device
        # Dropout reads the global generator; times and noise have their own.
        own = seeds(self.config.training.seed, step, self.accelerator.process_index, part)
        torch.manual_seed(own[0])
        generator = torch.Generator(device).manual_seed(own[1])
        t = stratified_times(len(x_0), objective.sampling_eps, device, generator)
        return t, objective(model, x_0, t=t, generator=generator)

    def clip_gradients(self) -> float:
        """Scale the gradient down to `optim.grad_clip`; its norm before that."""
        clip = self.config.optim.grad_clip
        limit = clip if clip >= 0 else math.inf
        return float(self.accelerator.clip_grad_norm_(self.plain.parameters(), limit))

    def apply(self, lr: float) -> None:
        """Move the weights at the rate `lr`, then their average."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.plain.parameters())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model with its averaged weights, in evaluation mode."""
        self.ema.store(self.plain.parameters())
        self.ema.copy_to(self.plain.parameters())
        self.plain.eval()
        try:
            yield
        finally:
            self.ema.restore(self.plain.parameters())
            self.plain.train()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on."""
        scaler = self.accelerator.scaler
        return {
            "model": self.plain.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the EMA's decay stays that of the settings."""
        self.plain.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.ema.decay = self.config.training.ema
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
