"""One optimiser step: network, optimiser and moving average under Accelerate."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sedd_fast.data.batches import Batch
from sedd_fast.data.blocks import Blocks
from sedd_fast.data.examples import Examples
from sedd_fast.losses.objective import Objective, stratified_times
from sedd_fast.models import checkpoint
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.models.networks import OwnNetwork
from sedd_fast.ops._uniforms import RowStreams
from sedd_fast.training import saved_state
from sedd_fast.training.muon import Muon
from sedd_fast.training.networks import AnyObjective, new_network
from sedd_fast.training.settings import OptimConfig, TrainConfig

#: Keeps the noise of held-out losses and samples apart from that of training steps.
HELD_OUT_SEED = 2**31


def rate_factor(config: OptimConfig, step: int, progress: float) -> float:
    """min(step / warmup, 1), for "cosine" times a cosine from 1 to lr_min over the run.

    It multiplies every learning rate. `progress` is the fraction of the run that is done.
    """
    factor = min(step / config.warmup, 1.0) if config.warmup else 1.0
    if config.schedule == "cosine":
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        factor *= config.lr_min + (1 - config.lr_min) * cosine
    return factor


class Learner:
    """The network with its optimisers and its moving average.

    A step is `accumulate`, then `clip_gradients`, then `apply`; until `apply` only the gradients
    have changed. `model` is the network as Accelerate wraps it, for DDP or compiled; `plain` is the
    network itself, whose names of weights do not depend on that.

    Args:
        config: all settings.
        vocab_size: tokens of the tokenizer.
        accelerator: made by `api.make_accelerator`.
        initial: weights that the network and its moving average start from; None: random weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        vocab_size: int,
        accelerator: Any,
        initial: checkpoint.Checkpoint | None = None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        optim, section = config.optim, config.training
        torch.manual_seed(section.seed)
        model, self.objective = new_network(config, vocab_size)
        if initial is not None:
            checkpoint.restore(model, initial)
        # A fused head forms the gradient of a mean in its forward pass.
        self._mean = replace(self.objective, reduction="mean")
        model.to(accelerator.device)
        matrices = _inner_matrices(model) if optim.type == "muon" else []
        muon = {id(p) for p in matrices}
        adamw = torch.optim.AdamW(
            [p for p in model.parameters() if id(p) not in muon],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        made: dict[str, torch.optim.Optimizer] = {"optimizer": adamw}
        if matrices and accelerator.scaler is not None:
            raise ValueError(
                "optim.type: muon cannot be trained in fp16, where a loss scaler would have to "
                "serve two optimisers; set training.mixed_precision to bf16 or no"
            )
        if matrices:
            made["muon"] = Muon(matrices, optim.muon_lr, weight_decay=optim.weight_decay)
        self._rates = {"optimizer": optim.lr, "muon": optim.muon_lr}
        self.model, *prepared = accelerator.prepare(model, *made.values())
        #: By their names in a checkpoint.
        self.optimizers: dict[str, Any] = dict(zip(made, prepared, strict=True))
        self.plain: OwnNetwork = model  # Accelerate has put autocast into its forward pass
        self.ema = ExponentialMovingAverage(self.plain.parameters(), section.ema)

    def accumulate(self, batch: Batch, step: int) -> Tensor:
        """Add the gradient of a batch; return its loss in nats per token with loss, ().

        The gradient is that of the mean over sequences or, with `objective.per_token`, documents of
        the global batch; the mean over processes of what they return is the loss of that batch.
        """
        self.plain.train()
        accum = self.config.training.accum
        losses = []
        for number, part in enumerate(batch.chunk(accum)):
            last = number == accum - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(self._mean, self.model, part, step, number)[1]  # ()
                loss = loss * self._share(part)
                self.accelerator.backward(loss / accum)
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        if self.is_per_token:
            return mean
        return mean * (self.config.training.batch_size / batch.global_loss_tokens)

    @property
    def is_per_token(self) -> bool:
        """Whether the loss of every document is divided by its number of tokens."""
        return isinstance(self.objective, Objective) and self.objective.per_token

    def _share(self, part: Batch) -> float:
        """What the mean loss of a part of the global batch counts, 1 for a part of average size."""
        if not self.is_per_token:
            return 1.0  # parts have equally many sequences
        parts = self.accelerator.num_processes * self.config.training.accum
        return part.documents * parts / part.global_documents

    @torch.no_grad()
    def each_loss(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Times and losses (nats per sequence), each (B,), with the noise of `accumulate`."""
        parts = enumerate(batch.chunk(self.config.training.accum))
        # Without DDP, because a single process may call this.
        drawn = [self._loss(self.objective, self.plain, part, step, n) for n, part in parts]
        t, losses = zip(*drawn, strict=True)
        return torch.cat(t), torch.cat(losses)

    @torch.no_grad()
    def held_out_losses(self, held_out: Blocks | Examples) -> Tensor:
        """Losses of evenly spaced blocks or examples, (n,) in nats per token with loss, by time.

        Without `objective.per_token` each is divided by the mean number of tokens of all, so that
        their mean is the loss of all over the tokens of all.

        Times and noise are the same in every call, so that two calls differ by the weights alone.
        Each process returns the losses of its own batches; the noise of a block depends on its
        number only. All processes together return `training.eval_sequences` losses.
        """
        section, a = self.config.training, self.accelerator
        batch_size = section.batch_size // (a.num_processes * section.accum)
        batch = held_out.spaced(section.eval_sequences)
        count = len(batch)
        tokens = 1.0 if self.is_per_token else batch.global_loss_tokens / count
        generator = torch.Generator(a.device).manual_seed(HELD_OUT_SEED)
        t = stratified_times(count, self.objective.sampling_eps, a.device, generator)  # (count,)
        losses = [torch.empty(0, device=a.device)]  # a process may have no batch
        times = [t[:0]]
        for number in range(a.process_index, -(-count // batch_size), a.num_processes):
            part = slice(number * batch_size, (number + 1) * batch_size)
            rows = batch.rows(part).to(a.device)
            own: Any = RowStreams.of_texts(HELD_OUT_SEED, range(count)[part], request=1)
            given = {"t": t[part], "generator": own, **rows.masks}
            loss = self.objective(self.plain, rows.tokens, **given)  # (B,)
            losses.append(loss.float() / tokens)
            times.append(t[part])
        return torch.cat(losses)[torch.cat(times).argsort()]

    def _loss(
        self, objective: AnyObjective, model: nn.Module, batch: Batch, step: int, part: int
    ) -> tuple[Tensor, Tensor]:
        """Times (B,) of one part of a batch, and its loss, reduced as `objective` says."""
        device = self.accelerator.device
        # Dropout reads the global generator; times and noise are drawn from another.
        own = _seeds(self.config.training.seed, step, self.accelerator.process_index, part)
        torch.manual_seed(own[0])
        generator = torch.Generator(device).manual_seed(own[1])
        t = stratified_times(len(batch), objective.sampling_eps, device, generator)
        rows = batch.to(device)
        return t, objective(model, rows.tokens, t=t, generator=generator, **rows.masks)

    def clip_gradients(self) -> float:
        """Scale the gradient down to the norm `optim.grad_clip`; return its norm before that."""
        clip = self.config.optim.grad_clip
        limit = clip if clip >= 0 else math.inf
        return float(self.accelerator.clip_grad_norm_(self.plain.parameters(), limit))

    def apply(self, factor: float) -> None:
        """Update the weights with `factor` times the rates, then their moving average."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * self._rates[name]
            optimizer.step()
            optimizer.zero_grad()
        self.ema.update(self.plain.parameters())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the network its averaged weights, in evaluation mode, within the context."""
        self.ema.store(self.plain.parameters())
        self.ema.copy_to(self.plain.parameters())
        self.plain.eval()
        try:
            yield
        finally:
            self.ema.restore(self.plain.parameters())
            self.plain.train()

    def state_dict(self) -> dict[str, Any]:
        """The state of network, moving average, optimisers and loss scaler."""
        scaler = self.accelerator.scaler
        return {
            "model": self.plain.state_dict(),
            "ema": self.ema.state_dict(),
            **{name: each.state_dict() for name, each in self.optimizers.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, saved: Mapping[str, Any], step: int) -> None:
        """Restore what `state_dict` returned after `step` steps.

        Optimiser and moving average keep the constants of the settings. ValueError, with nothing
        restored, unless the state is whole and fits the network.
        """
        weights = saved_state.weights(saved, self.plain.state_dict())
        average = saved_state.average(saved, self.ema.shadow_params)
        moments = {
            name: saved_state.moments(saved, name, each.param_groups[0]["params"], step)
            for name, each in self.optimizers.items()
        }
        own = self.accelerator.scaler
        scaler = saved_state.scaler(saved, {} if own is None else own.state_dict())
        self.plain.load_state_dict(weights)
        self.ema.load_state_dict(average)
        self.ema.decay = self.config.training.ema
        for name, each in self.optimizers.items():
            groups = each.state_dict()["param_groups"]
            each.load_state_dict({"state": moments[name], "param_groups": groups})
        if own is not None and scaler is not None:
            own.load_state_dict(scaler)


def _inner_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of the blocks, but for those that modulate by the noise level: (M, N) each."""
    return [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and name.startswith("blocks.") and "adaLN_modulation" not in name
    ]


def _seeds(*key: int) -> list[int]:
    """Two independent 32-bit seeds from a key of non-negative integers."""
    return np.random.SeedSequence(key).generate_state(2).tolist()
