"""Monte Carlo over the sequences of a text: batches of samples, and their random numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sedd_fast.ops._uniforms import torch_uniform
from sedd_fast.progress import tracked

#: How the noise levels of a sequence are placed: see :class:`Batches`.
TIMES = ("stratified", "antithetic")
_BELOW_ONE = 1 - 2**-53  # the largest value of torch.rand in float64


def paired_stderr(values: Tensor) -> Tensor:
    """Standard error of the mean of each row of stratified samples (B, S), S >= 2: (B,).

    With one sample in each stratum, the variance inside a stratum cannot be estimated. So
    neighbouring strata are paired: the variance is the sum of squared differences within the pairs,
    over S^2. It is unbiased where neighbours have the same mean and otherwise too large in
    expectation, never too small; a plain sample variance would add the whole variance between
    strata. If S is odd, the last sample is paired with its neighbour, which has a pair already.
    """
    count = values.shape[1]
    pairs = [values[:, 0 : count - 1 : 2] - values[:, 1:count:2]]
    if count % 2:
        pairs.append(values[:, -1:] - values[:, -2:-1])
    return torch.cat(pairs, dim=1).square().sum(1).sqrt() / count


@dataclass(frozen=True)
class Batches:
    """The sequences x_0 (N, L), and the uniform numbers of each of their samples.

    A sample of a sequence is a place in [0, 1), which sets the noise level, and (L, 2) uniform
    numbers, which set the noised tokens. With S samples of each sequence, ``times`` is

    - "stratified": sample s has its place in [s / S, (s + 1) / S);
    - "antithetic": the samples come in pairs, the place of the first in [k / S, (k + 1) / S),
      k < S / 2; the second is its mirror image: place and uniform numbers v become 1 - v. The
      tokens masked in the first are, but for one, not masked in the second. S is even.

    Each single sample is uniform either way, so both estimates have the same expected value.
    """

    x_0: Tensor
    device: torch.device
    generator: torch.Generator | None
    batch_size: int
    progress: bool
    times: str = "stratified"

    def draw(self, term: Callable[..., Tensor], samples: int, label: str) -> Tensor:
        """(N, draws) float64 on the CPU, the independent draws of ``term(x_0, place, u)``.

        A sequence has ``samples`` draws if stratified; half as many, means of pairs, if antithetic.
        ``place`` is (R,), ``u`` (R, L, 2), both float64. The rows take their random numbers in
        order from one stream, so that the batch size does not change them.
        """
        sequences, length = self.x_0.shape
        if self.x_0.numel() == 0:
            return torch.zeros(sequences, samples, dtype=torch.float64)
        draws = samples // 2 if self.times == "antithetic" else samples
        rows = torch.arange(sequences * draws)
        values = []
        for row in tracked(rows.split(self.batch_size), label, self.progress):
            u = torch_uniform((len(row), 1 + 2 * length), self.device, self.generator)
            place = ((row % draws).to(self.device) + u[:, 0]) / samples
            x_0 = self.x_0[(row // draws).to(self.x_0.device)].to(self.device)  # (R, L)
            u = u[:, 1:].reshape(len(row), length, 2)
            value = term(x_0, place, u)
            if self.times == "antithetic":
                value = (value + term(x_0, _BELOW_ONE - place, _BELOW_ONE - u)) / 2
            values.append(value)
        return torch.cat(values).cpu().view(sequences, draws)
