"""losses: the objective, the optimiser and one training or evaluation step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.compat.graph_lib import Graph
from sedd_fast.compat.model import utils as mutils
from sedd_fast.compat.noise_lib import NoiseFn

#: ``loss_fn(model, batch, cond=None, t=None, perturbed_batch=None)`` -> (B,) nats
LossFn = Callable[..., Tensor]


def get_loss_fn(
    noise: NoiseFn, graph: Graph, train: bool, sampling_eps: float = 1e-3, lv: bool = False
) -> LossFn:
    """The objective: noise rate times score entropy, summed over positions, in nats.

    Args:
        noise: ``sigma, rate = noise(t)``.
        graph: the noise process.
        train: whether the model is put in training mode.
        sampling_eps: times are drawn uniformly from [sampling_eps, 1], independently.
        lv: not implemented, as in the original.
    """
    if lv:
        raise NotImplementedError("lv=True was never implemented; leave it False")

    def loss_fn(
        model: nn.Module,
        batch: Tensor,
        cond: Any = None,
        t: Tensor | None = None,
        perturbed_batch: Tensor | None = None,
    ) -> Tensor:
        """(B,) for batch (B, L) int64; t (B,) and perturbed_batch (B, L) are drawn if None."""
        if t is None:
            u = torch.rand(len(batch), dtype=torch.float32, device=batch.device)
            t = (1 - sampling_eps) * u + sampling_eps
        sigma, rate = noise(at_least_fp32(t))  # (B,)
        if perturbed_batch is None:
            perturbed_batch = graph.sample_transition(batch, sigma[:, None])
        log_score = mutils.get_score_fn(model, train=train)(perturbed_batch, sigma)
        loss = graph.score_entropy(log_score, sigma[:, None], perturbed_batch, batch)  # (B, L)
        return (rate[:, None] * loss).sum(-1)

    return loss_fn


def get_optimizer(config: Any, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """``config.optim.optimizer``, "Adam" or "AdamW", with lr, beta1, beta2, eps, weight_decay."""
    kinds = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    optim = config.optim
    if optim.optimizer not in kinds:
        wrong = f"optim.optimizer must be 'Adam' or 'AdamW', got {optim.optimizer!r}"
        raise NotImplementedError(wrong)
    make, betas = kinds[optim.optimizer], (optim.beta1, optim.beta2)
    return make(params, lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=optim.weight_decay)


def optimization_manager(config: Any) -> Callable[..., None]:
    """``optimize_fn(optimizer, scaler, params, step)``: linear warm-up, clipping, and the step."""

    def optimize_fn(
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        params: Iterable[nn.Parameter],
        step: int,
        lr: float = config.optim.lr,
        warmup: int = config.optim.warmup,
        grad_clip: float = config.optim.grad_clip,
    ) -> None:
        """One step; no warm-up if ``warmup`` is 0, no clipping if ``grad_clip`` is negative."""
        scaler.unscale_(optimizer)
        if warmup > 0:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(step / warmup, 1.0)
        if grad_clip >= 0:
            torch.nn.utils.clip_grad_norm_(params, max_norm=grad_clip)
        scaler.step(optimizer)
        scaler.update()

    return optimize_fn


def get_step_fn(
    noise: NoiseFn, graph: Graph, train: bool, optimize_fn: Callable[..., None], accum: int
) -> Callable[..., Tensor]:
    """``loss = step_fn(state, batch)``, a scalar.

    ``state`` is a dict of model, optimizer, scaler, ema and step. In training the gradients of
    ``accum`` calls make one optimiser step, which counts ``state["step"]`` up and returns the mean
    loss of those calls; the calls before it return their own share. In evaluation the loss is that
    of the averaged weights.
    """
    loss_fn = get_loss_fn(noise, graph, train)
    shares: list[Tensor] = []  # of the calls that make up one optimiser step

    def train_step(state: dict[str, Any], batch: Tensor, cond: Any = None) -> Tensor:
        model = state["model"]
        loss = loss_fn(model, batch, cond=cond).mean() / accum
        state["scaler"].scale(loss).backward()
        shares.append(loss.detach())
        if len(shares) < accum:
            return loss
        total = torch.stack(shares).sum()
        shares.clear()
        state["step"] += 1
        optimize_fn(state["optimizer"], state["scaler"], model.parameters(), step=state["step"])
        state["ema"].update(model.parameters())
        state["optimizer"].zero_grad()
        return total

    @torch.no_grad()
    def eval_step(state: dict[str, Any], batch: Tensor, cond: Any = None) -> Tensor:
        model, ema = state["model"], state["ema"]
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        try:
            return loss_fn(model, batch, cond=cond).mean()
        finally:
            ema.restore(model.parameters())

    return train_step if train else eval_step
