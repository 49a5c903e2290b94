"""The held-out loss during training, with common random numbers so that its curve is smooth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sedd_fast.data.blocks import Blocks
from sedd_fast.losses.objective import stratified_times
from sedd_fast.train.networks import AnyObjective

_HELD_OUT_SEED = 2**31  # keeps the estimate's noise apart from that of every training step


@torch.no_grad()
def held_out_loss(
    model: Any,
    blocks: Blocks,
    objective: AnyObjective,
    sequences: int,
    batch_size: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """Losses of evenly spaced held-out blocks at fixed times and noise: (n,) nats per token.

    `share` = (rank, processes): every process takes whole batches, whose noise depends on the
    batch's number only. Common random numbers make two calls differ by the weights alone.
    """
    count = min(sequences, len(blocks))
    chosen = np.linspace(0, len(blocks) - 1, count).round().astype(int)
    generator = torch.Generator(device).manual_seed(_HELD_OUT_SEED)
    t = stratified_times(count, objective.sampling_eps, device, generator)  # over all sequences
    losses = []
    for number, start in enumerate(range(0, count, batch_size)):
        if number % share[1] != share[0]:
            continue
        x_0 = blocks.rows(chosen[start : start + batch_size]).to(device)  # (B, L)
        generator.manual_seed(seeds(_HELD_OUT_SEED, number)[0])
        part = t[start : start + batch_size]
        losses.append(objective(model, x_0, t=part, generator=generator).float() / blocks.length)
    return torch.cat(losses) if losses else torch.empty(0, device=device)


def seeds(*key: int) -> list[int]:
    """Two independent 32-bit seeds from a key of non-negative integers."""
    return np.random.SeedSequence(key).generate_state(2).tolist()
