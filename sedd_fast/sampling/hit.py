"""The sampler that computes only what changes: "hit", for the absorbing graph.

With normalised scores, p(y) = s_y / sum(s), a masked position of the analytic sampler stays masked
from noise sigma(t) to sigma(s) with probability m(s) / m(t), where m = 1 - exp(-sigma): it does not
depend on the text. So the time at which each position is unmasked can be drawn beforehand, as the
mask probability m(tau) = u m(1) at that time. A step then computes only the sequences in which a
position is unmasked, and the head only those positions. The token is drawn in proportion to the
scores.

The distribution is that of "analytic" if the network is normalised, Z = expm1(sigma) sum(s) = 1.
With another network "analytic" unmasks at Z times the rate, this sampler at the right one.
docs/sampling.md measures the difference.

``steps=None`` is the limit of a fine grid, first-hitting sampling: one position at a time, each at
its own noise.

Source: Lou, Meng, Ermon 2024 (arXiv 2310.16834); Zheng et al. 2024 (arXiv 2409.02908), algorithm 1.
"""

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import uniform
from sedd_fast.sampling.levels import mask_probability, times_of
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.sampler import Sampler

#: What happens to every position, (B, L) each, on the host: the number of the step in which it is
#: unmasked, int64, -1 for never; the noise level passed to the network then, and the time reached,
#: float64.
Events = tuple[Tensor, Tensor, Tensor]


class HitSampler(Sampler):
    """A step for every interval of the grid, or every rank, in which a position is unmasked."""

    def __init__(self, process: ReverseProcess, x: Tensor) -> None:
        mask = process.graph.mask_index
        assert mask is not None  # SamplerConfig.check_graph
        masked = torch.eq(x.cpu(), mask)
        first = process.noise.sigma(torch.ones((), dtype=torch.float64))
        # m(tau): P(still masked at t) = m(t) / m(1)
        # Of every position: its time, and the two numbers of its token.
        u = uniform((*masked.shape, 3), masked.device, process.generator)
        level = u[..., 0] * mask_probability(first)  # (B, L) float64
        find = _one_by_one if process.config.steps is None else _by_interval
        number, sigma, t = find(level, masked, process)
        flat = (number >= 0).flatten().nonzero().squeeze(-1)  # (N,) positions that are unmasked
        number = number.flatten()[flat]
        sizes = [size for size in number.bincount().tolist() if size]
        steps = flat[number.argsort(stable=True)].split(sizes)
        self.times: list[float] = [float(t.flatten()[step].max()) for step in steps]
        self.where = [[p.to(x.device) for p in _positions(step, sigma)] for step in steps]
        self.u = u[..., 1:].to(x.device)  # (B, L, 2)
        super().__init__(process, len(self.times))

    def step(self, i: int, x: Tensor) -> tuple[Tensor, float]:
        """The tokens (B, L) after step i, from those before, and the time reached."""
        sequence, sigma, row, column = self.where[i]
        where = sequence[row], column
        drawn = self.u[where]
        tokens = self.process.unmask(x[sequence], sigma, row, column, drawn, sequence)
        return x.index_put(where, tokens), self.times[i]


def _positions(flat: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    """The positions that one step unmasks, and the noise of their sequences.

    Args:
        flat: (K,) int64, numbers of the positions in all B * L.
        sigma: (B, L) float64, the noise level passed to the network; one value a sequence.

    Returns:
        (R,) int64 numbers of the sequences; (R,) float64 their noise; (K,) row in these sequences
        and (K,) column of every position.
    """
    sequence, row = flat.div(sigma.shape[1], rounding_mode="floor").unique(return_inverse=True)
    column = flat % sigma.shape[1]
    level = sigma.new_empty(len(sequence)).index_put((row,), sigma.flatten()[flat])
    return sequence, level, row, column


def _by_interval(level: Tensor, masked: Tensor, process: ReverseProcess) -> Events:
    """Interval i, t_i to t_(i+1), has the levels in [m_(i+1), m_i); lower ones are denoised."""
    times = process.config.times
    steps, sigma = len(times) - 1, process.noise.sigma(times)
    rising = mask_probability(sigma[1:]).flip(0)
    interval = steps - torch.searchsorted(rising, level, right=True)  # (B, L), 0 .. steps
    happens = masked & ((interval < steps) | process.config.denoise)
    reached = torch.cat((times[1:], times.new_zeros(1)))
    return (torch.where(happens, interval, -1), sigma[interval], reached[interval])


def _one_by_one(level: Tensor, masked: Tensor, process: ReverseProcess) -> Events:
    """In the order of the times; the noise passed to the network is never below that at ``eps``."""
    config = process.config
    last = process.noise.sigma(torch.full((), config.eps, dtype=torch.float64))
    happens = masked & ((level >= mask_probability(last)) | config.denoise)
    order = torch.where(happens, level, -1.0).argsort(-1, descending=True)  # (B, L)
    rank = order.argsort(-1)
    sigma = -torch.log1p(-level)
    t = times_of(sigma, process.noise)
    return (torch.where(happens, rank, -1), sigma.clamp(min=last), t)
