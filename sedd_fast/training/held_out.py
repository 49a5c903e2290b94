"""Held-out figures of a run: its mean loss with a standard error, and drawn completions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sedd_fast.data.examples import Examples, before
from sedd_fast.data.prompts import decode
from sedd_fast.data.tokenizers import Tokenizer
from sedd_fast.evaluate.draws import variance_of_mean
from sedd_fast.evaluate.standard_error import covering_error, total
from sedd_fast.models.sedd import SEDD
from sedd_fast.ops._uniforms import RowStreams
from sedd_fast.sampling.api import infill
from sedd_fast.training.step import HELD_OUT_SEED

_REQUEST = 2  # another noise than that of the held-out loss
_MOST_STEPS = 128


def mean_loss(losses: Tensor, gather: Callable[..., Tensor]) -> tuple[float, float | None]:
    """The mean of the losses of all processes, and its standard error, None for one loss.

    Args:
        losses: (n,) float64 on the CPU, those of this process in the order of their times.
        gather: numbers of a process to those of all, (processes, number of arguments).
    """
    n, spread, degrees = len(losses), 0.0, 1.0
    if n > 1:  # neighbours have neighbouring times, which are stratified
        variance, of_freedom = variance_of_mean(losses[None])
        spread, degrees = float(variance) * n**2, float(of_freedom)
    sums = float(losses.sum()), float(losses.square().sum())
    counts, ones, squares, spreads, freedom = gather(n, *sums, spread, degrees).T
    count, mean = int(counts.sum()), float(ones.sum() / counts.sum())
    variance, of_freedom = total(spreads, freedom)
    if 1 in counts and count > 1:  # a loss has no neighbour: the spread of all, without strata
        of_freedom = counts.sum() - 1
        variance = (squares.sum() - count * mean**2).clamp(min=0) * count / of_freedom
    return mean, float(covering_error(variance, of_freedom)) / count if count > 1 else None


def draw_completions(
    model: SEDD, examples: Examples, tokenizer: Tokenizer, most: int, device: torch.device
) -> list[dict[str, Any]]:
    """Completions of evenly spaced held-out prompts, with the same noise in every call.

    Each is drawn in a gap of the length that its example has in training.

    Returns:
        At most `most` records with "prompt", "completion", and "reference", the example's own.
    """
    batch = examples.spaced(most)
    assert batch.loss_mask is not None
    rows = batch.to(device)
    assert rows.loss_mask is not None
    steps = min(int(batch.loss_mask.sum(1).max()), _MOST_STEPS)
    streams = RowStreams.of_texts(HELD_OUT_SEED, range(len(batch)), _REQUEST)
    drawn = infill(
        model, model.graph, model.noise, rows.tokens, ~rows.loss_mask, steps,
        generator=streams, attention_mask=rows.attention_mask,
    ).cpu()  # fmt: skip
    mask_index, records = model.graph.mask_index, []
    for own, found, gap in zip(batch.tokens, drawn, batch.loss_mask, strict=True):
        start = int(gap.nonzero()[0])
        parts = {
            "prompt": own[:start].tolist(),
            "completion": before(found[gap].tolist(), tokenizer.eot),
            "reference": before(own[gap].tolist(), tokenizer.eot),
        }
        records.append({name: decode(ids, tokenizer, mask_index) for name, ids in parts.items()})
    return records
