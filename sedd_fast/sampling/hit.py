"""The sampler that computes only what changes: "hit", for the absorbing graph.

With normalised scores, p(y) = s_y / sum(s), a masked position of the analytic sampler stays masked
from noise sigma(t) to sigma(s) with probability m(s) / m(t), where m = 1 - exp(-sigma): it does not
depend on the text. So each position's unmasking can be drawn beforehand, as the mask probability
m(tau) = u m(1) at which it happens, and a step need touch only the sequences in which a position
unmasks, and the head only those positions. The token is drawn in proportion to the scores.

The law is that of "analytic" if the network is normalised, Z = expm1(sigma) sum(s) = 1; another
network unmasks in "analytic" at Z times the rate, here at the right one. docs/sampling.md measures
the difference.

``steps=None`` is the limit of a fine grid, first-hitting sampling: one position at a time, each at
its own noise.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834); Zheng et al. 2024 (arXiv 2409.02908), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sedd_fast.models.interface import ScoreModel
from sedd_fast.process.noise import Noise
from sedd_fast.sampling.config import Run, Stage
from sedd_fast.sampling.draw import Drawing, draw_at, uniform

_BISECTIONS = 55  # of [0, 1]: to the last digit of a float64


@dataclass(frozen=True)
class _Events:
    """What happens to every position, on the host.

    Attributes:
        stage: (B, L) int64, in which stage it unmasks; -1: never.
        sigma: (B, L) float64, the noise that the network is told of.
        t: (B, L) float64, the time reached then.
    """

    stage: Tensor
    sigma: Tensor
    t: Tensor


def plan(run: Run, x: Tensor) -> list[Stage]:
    """A stage for every interval of the grid (or number in the order) in which anything unmasks."""
    masked = x.cpu() == run.graph.vocab_size
    levels = _levels(masked, run)
    if run.steps is None:
        events = _one_by_one(levels, masked, run)
    else:
        events = _by_interval(levels, masked, run)
    return _stages(events, run.drawing, x.device)


def _mask_probability(sigma: Tensor) -> Tensor:
    return -torch.expm1(-sigma)


def _levels(masked: Tensor, run: Run) -> Tensor:
    """(B, L) float64, m(tau): P(still masked at t) = m(t) / m(1)."""
    start = _mask_probability(run.noise.sigma(torch.ones((), dtype=torch.float64)))
    return uniform(masked, run.drawing.generator) * start


def _by_interval(levels: Tensor, masked: Tensor, run: Run) -> _Events:
    """Interval i, t_i to t_(i+1), has the levels in [m_(i+1), m_i); what is below is denoised."""
    times = run.times
    steps, sigma = len(times) - 1, run.noise.sigma(times)
    rising = _mask_probability(sigma[1:]).flip(0)
    interval = steps - torch.searchsorted(rising, levels, right=True)  # (B, L), 0 .. steps
    happens = masked & ((interval < steps) | run.denoise)
    reached = torch.cat((times[1:], times.new_zeros(1)))
    return _Events(torch.where(happens, interval, -1), sigma[interval], reached[interval])


def _one_by_one(levels: Tensor, masked: Tensor, run: Run) -> _Events:
    """In the order of the times; below ``eps`` the network is told of the noise at ``eps``."""
    last = run.noise.sigma(torch.full((), run.eps, dtype=torch.float64))
    happens = masked & ((levels >= _mask_probability(last)) | run.denoise)
    order = torch.where(happens, levels, -1.0).argsort(-1, descending=True)  # (B, L)
    rank = order.argsort(-1)
    sigma = -torch.log1p(-levels)
    t = _times(sigma, run.noise)
    return _Events(torch.where(happens, rank, -1), sigma.clamp(min=last), t)


def _times(sigma: Tensor, noise: Noise) -> Tensor:
    """The times of noise levels, by bisection: a schedule knows sigma(t) only, which rises."""
    low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = noise.sigma(middle) < sigma
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def _stages(events: _Events, drawing: Drawing, device: torch.device) -> list[Stage]:
    """The positions of every stage, gathered on the host and sent to the device at once."""
    flat = (events.stage >= 0).flatten().nonzero().squeeze(-1)  # (K,) of all positions that unmask
    number = events.stage.flatten()[flat]
    flat = flat[number.argsort(stable=True)]
    sizes = [size for size in number.bincount().tolist() if size]
    sigma, t = events.sigma.flatten()[flat], events.t.flatten()[flat]
    sequence = flat.div(events.stage.shape[1], rounding_mode="floor")
    column = flat % events.stage.shape[1]
    parts = [part.split(sizes) for part in (sequence, column, sigma, t)]
    return [
        Stage(float(times.max()), _advance(of, columns, levels, drawing, device))
        for of, columns, levels, times in zip(*parts, strict=True)
    ]


def _advance(
    sequences: Tensor, columns: Tensor, sigma: Tensor, drawing: Drawing, device: torch.device
) -> partial[Tensor]:
    touched, row = sequences.unique(return_inverse=True)  # (R,), (K,)
    level = sigma.new_empty(len(touched)).index_put((row,), sigma)  # one noise level a sequence
    where = [part.to(device) for part in (touched, level, row, columns)]
    return partial(_unmask, where=where, drawing=drawing)


def _unmask(model: ScoreModel, x: Tensor, where: list[Tensor], drawing: Drawing) -> Tensor:
    touched, sigma, row, columns = where
    tokens = draw_at(model, x[touched], sigma, row, columns, drawing)
    return x.index_put((touched[row], columns), tokens)
