"""Monte Carlo over the sequences of a text: batches of samples, and their random numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.evaluate.sequences import Sequences
from sedd_fast.evaluate.standard_error import total
from sedd_fast.names import Times
from sedd_fast.ops._uniforms import RowStreams
from sedd_fast.progress import tracked

_BELOW_ONE = 1 - 2**-53  # the largest value of torch.rand in float64


def variance_of_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """The variance of the mean of each row of draws (B, S) of :class:`Batches`, S >= 2.

    It is the sum over strata of n s^2 / S^2, where n and s^2 are the number and the sample variance
    of a stratum's draws: without bias, whatever the means of the strata are.

    Returns:
        (B,) variances, (B,) their degrees of freedom.
    """
    count = values.shape[1]
    sizes = stratum_sizes(count)
    strata = values.split(sizes, 1)
    parts = [(part - part.mean(1, keepdim=True)).square().sum(1) for part in strata]
    degrees = torch.tensor(sizes, dtype=values.dtype) - 1  # n - 1
    scale = torch.tensor(sizes, dtype=values.dtype) / degrees / count**2
    return total(torch.stack(parts, 1) * scale, degrees)


def stratum_sizes(draws: int) -> list[int]:
    """The number of draws in each stratum: 2, but 3 in the last one where ``draws`` is odd."""
    return [2] * (draws // 2 - draws % 2) + [3] * (draws % 2)


@dataclass(frozen=True)
class Batches:
    """Sequences (N, L), and the uniform numbers of each of their samples.

    A sample of a sequence is a place in [0, 1), which sets the noise level, and 1 + 2 L further
    uniform numbers, which set the noised tokens. With S samples of each sequence, ``times`` is

    - "stratified": two samples have their places in each of S / 2 equal slices of [0, 1); if S is
      odd, three in a last one of one and a half times the width. One sample a slice would have a
      little less variance, but no estimate of it without bias;
    - "antithetic": the samples come in pairs; of two pairs, the first samples have their places in
      one of S / 4 equal slices of [0, 1 / 2), the second samples are their mirror images: place and
      uniform numbers v become 1 - v. The tokens masked in the first are, but for one, not masked in
      the second. S is a multiple of 4.

    Averaged over a sequence's samples the place is uniform either way, so both estimates have the
    same expected value.
    """

    sequences: Sequences
    device: torch.device
    generator: torch.Generator | None
    batch_size: int
    progress: bool
    times: Times = "stratified"

    def draw(self, term: Callable[..., Tensor], samples: int, label: str) -> Tensor:
        """(N, draws) float64 on the CPU, the independent draws of ``term(rows, place, choice, u)``.

        A sequence has ``samples`` draws if stratified; half as many, means of pairs, if antithetic.
        ``rows`` are R of the sequences, ``place`` and ``choice`` are (R,), ``u`` is (R, L, 2), all
        float64. One number of the generator is the key of all, and a row's numbers depend on the
        number of the row only: neither the batch size nor padding changes them.
        """
        x_0 = self.sequences.x_0
        sequences, length = x_0.shape
        if x_0.numel() == 0:
            return torch.zeros(sequences, samples, dtype=torch.float64)
        draws = samples // 2 if self.times == "antithetic" else samples
        sizes = torch.tensor(stratum_sizes(draws))
        width = sizes.repeat_interleave(sizes)  # (draws,), in units of 1 / samples
        start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        [key] = RowStreams.of_generators([self.generator]).keys
        values = []
        rows = torch.arange(sequences * draws).split(self.batch_size)
        for row in tracked(rows, label, self.progress):
            streams = RowStreams.of_texts(key, row.tolist())
            u = streams.uniform((len(row), 2 + 2 * length))
            s = row % draws
            place = ((start[s] + width[s] * u[:, 0]) / samples).to(self.device)
            of_rows = self.sequences.rows(row // draws, self.device)
            u = u.to(self.device)
            numbers = place, u[:, 1], u[:, 2:].reshape(len(row), length, 2)
            value = term(of_rows, *numbers)
            if self.times == "antithetic":
                value = (value + term(of_rows, *(_BELOW_ONE - v for v in numbers))) / 2
            values.append(value)
        return torch.cat(values).cpu().view(sequences, draws)
