"""Masks that are spread evenly over the positions of a sequence: ``times="balanced"``.

Of L tokens the bound is the expectation of c_A / (n q(n)), where n, the number of masks, has the
distribution q, A is a uniformly random set of n positions, and c_A is the sum of the losses c_i of
the tokens i in A. Most of the variance has its origin in A: where n is small, which of the tokens
are masked. So the S samples of a sequence are divided into G independent groups. In a group of T:

**The number of masks** has the distribution q(n) proportional to 1 / sqrt(n), by inversion of its
distribution function at T places, one in each of T equal slices of [0, 1). A random place in the
slice is shared by all slices, and mirrored in every second one, so that errors of first order
cancel in pairs. The standard deviation of c_A / n is about proportional to 1 / sqrt(n), and so this
q is near that of the least variance. (q is uniform in groups of fewer than 4 samples, which cannot
sample the trend of 1 / q.) A group with T q(L) >= 2 has samples of every number, T_n of n masks,
and its numbers add no variance: q(n) is replaced by T_n / T in what follows.

**The positions**: from the least n to the largest, a sample masks those positions that earlier
samples of the group masked least often; ties are broken at random. So all positions are masked
equally often, to within one, by any number of the first samples. No position is distinguished:
given n, every A is uniform, and the estimate is without bias.

**A control variate** removes what imbalance is left. With w = 1 / (n q(n)), let C_i and W_i be the
mean over the samples of a group of w c_i and of w, both zero where i is not masked. The expectation
of W_i is 1. The estimate of a group is

    sum over i of [C_i + (1 - W_i) a_i]

where a_i is the ratio of the sums of C_i and of W_i over the other groups: independent of W_i, so
that no bias is added.

The bound is the mean of the groups, and its variance s^2 / G, with s^2 the sample variance of the
groups. (They share the a_i, but their covariance is of second order in the errors of the a_i.)

Source of the integral over n: Ou et al. 2024 (arXiv 2406.03736). Drawing n in evenly spaced places
is the practice of Nie et al. 2025 (arXiv 2502.09992), whose masks are independent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.evaluate.sequences import Sequences
from sedd_fast.ops._uniforms import RowStreams
from sedd_fast.progress import tracked

_GROUP = 64  # samples of a group, where there are many
_ROWS = 2048  # samples whose masks are drawn at once, at least
_LEAST = 4  # samples of a group, for q(n) to be other than uniform

#: ``(rows, masked (R, L), m (R,), weight (R,)) -> (R, L)``: the losses of masked tokens, weighted.
Losses = Callable[[Sequences, Tensor, Tensor, Tensor], Tensor]


def group_sizes(samples: int) -> list[int]:
    """The number of samples in each group: 2 groups of fewer than 8 samples, else at least 4."""
    groups = max(4, samples // _GROUP) if samples >= 8 else 2
    return [samples // groups + (g < samples % groups) for g in range(groups)]


@dataclass(frozen=True)
class Masks:
    """The samples of sequences.

    Attributes:
        masked: (N, S, L) bool.
        m: (N, S) float64, the mask probability: the n-th smallest of as many uniforms as tokens.
        weight: (N, S) float64, w.
    """

    masked: Tensor
    m: Tensor
    weight: Tensor

    @classmethod
    def draw(cls, evaluated: Tensor, u: Tensor) -> "Masks":
        """From evaluated (N, L) bool and uniform numbers u (N, S, 1 + L)."""
        sequences, samples = u.shape[:2]
        sizes, group, first = _groups(samples)
        step = torch.arange(samples) - first[group]
        offset = u[:, first[group], 0]
        offset = torch.where(step % 2 == 0, offset, 1 - offset)
        number, weight = _numbers((step + offset) / sizes[group], evaluated.sum(1))
        order = u[..., 1:].masked_fill(~evaluated[:, None], torch.inf)
        last = (number - 1)[..., None]
        m = order.sort(-1).values.gather(-1, last).squeeze(-1)
        masked = torch.zeros_like(order, dtype=torch.bool)
        count = torch.zeros(sequences, len(sizes), evaluated.shape[1], dtype=torch.float64)
        for t in range(int(sizes.max())):  # of all groups at once: the larger ones are the first
            s = (first + t)[sizes > t]
            key = count[:, : len(s)] + order[:, s]
            masked[:, s] = key <= key.sort(-1).values.gather(-1, last[:, s])
            count[:, : len(s)] += masked[:, s]
        return cls(masked, m, weight)


def _groups(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The size of each group (G,), the group of each sample (S,), the first of each group (G,)."""
    sizes = torch.tensor(group_sizes(samples))
    return sizes, torch.arange(len(sizes)).repeat_interleave(sizes), sizes.cumsum(0) - sizes


def _numbers(place: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """n and w at places (N, S) of the distribution function of q, for lengths (N,)."""
    sizes, group, _ = _groups(place.shape[1])
    n = torch.arange(1, int(length.max()) + 1, dtype=torch.float64)
    number, share = torch.zeros_like(place, dtype=torch.int64), torch.zeros_like(place)
    for density, few in ((n.rsqrt(), False), (torch.ones_like(n), True)):
        q = density * (n <= length[:, None])  # (N, L)
        q = q / q.sum(1, keepdim=True)
        at = torch.searchsorted(q.cumsum(1), place, right=True).minimum(length[:, None] - 1)
        of = (sizes[group] < _LEAST) == few
        number = torch.where(of, at + 1, number)
        share = torch.where(of, q.gather(1, at), share)
        if not few:
            least = q.gather(1, length[:, None] - 1)  # q(L)
    drawn = torch.zeros(len(place), len(sizes) * (len(n) + 1), dtype=torch.float64)
    cell = group * (len(n) + 1) + number
    drawn.scatter_add_(1, cell, torch.ones_like(place))
    every = least * sizes[group] >= 2
    share = torch.where(every, drawn.gather(1, cell) / sizes[group], share)
    return number, 1 / (number * share)


def _estimates(c: Tensor, w: Tensor, evaluated: Tensor) -> Tensor:
    """The estimates of the groups (N, G), from C and W (N, G, L) and evaluated (N, L)."""
    c_other, w_other = (total.sum(1, keepdim=True) - total for total in (c, w))
    mean = c_other.sum(-1, keepdim=True) / w_other.sum(-1, keepdim=True)
    # The smallest w is far above the rounding errors of these sums, about 1e-15.
    a = torch.where(w_other > 1e-9, c_other / w_other, mean)
    a = torch.where(a.isfinite() & evaluated[:, None], a, 0.0)  # an infinite loss stays infinite
    return (c + (1 - w) * a).sum(-1)


def balanced_draws(
    losses: Losses,
    sequences: Sequences,
    samples: int,
    device: torch.device,
    generator: torch.Generator | None,
    batch_size: int,
    label: str,
    progress: bool,
) -> Tensor:
    """(N, G) float64 on the CPU, the estimates of each sequence's groups.

    One number of the generator is the key of all random numbers, and those of a sample depend on
    the number of its row only: neither the batch size nor padding changes them.
    """
    total, length = sequences.x_0.shape
    sizes, group, _ = _groups(samples)
    if sequences.x_0.numel() == 0:
        return torch.zeros(total, len(sizes), dtype=torch.float64)
    [key] = RowStreams.of_generators([generator]).keys
    evaluated, found = sequences.evaluated.cpu(), []
    chunk = -(-_ROWS // samples)  # sequences whose masks are drawn at once
    batches = [
        (start, row)
        for start in range(0, total, chunk)
        for row in torch.arange(min(chunk, total - start) * samples).split(batch_size)
    ]
    for start, row in tracked(batches, label, progress):
        own = evaluated[start : start + chunk]
        if row[0] == 0:
            rows = range(start * samples, (start + len(own)) * samples)
            u = RowStreams.of_texts(key, rows).uniform((len(rows), 1 + length))
            masks = Masks.draw(own, u.view(len(own), samples, 1 + length))
            # w / T of every sample, and C and W of every group
            share = masks.weight / sizes[group]
            zero = torch.zeros(len(own), len(sizes), length, dtype=torch.float64)
            w = zero.index_add(1, group, share[..., None] * masks.masked)
            c = torch.zeros_like(w).flatten(0, 1)
        number, sample = row // samples, row % samples
        drawn = (each[number, sample].to(device) for each in (masks.masked, masks.m, share))
        value = losses(sequences.rows(start + number, device), *drawn).cpu()
        c.index_add_(0, number * len(sizes) + group[sample], value)
        if row[-1] == len(own) * samples - 1:
            found.append(_estimates(c.view_as(w), w, own))
    return torch.cat(found)


def variance_of_groups(estimates: Tensor) -> tuple[Tensor, Tensor]:
    """The variance of the mean of groups (N, G) without bias, and its degrees of freedom: (N,)."""
    groups = estimates.shape[1]
    squares = (estimates - estimates.mean(1, keepdim=True)).square().sum(1)
    return squares / (groups - 1) / groups, torch.full_like(squares, groups - 1)
