"""Which positions a decoding step accepts: the rules of the samplers by certainty.

A step draws a token at every position that may be accepted, ranks these by how sure the network is
of them, and accepts the first k. Equal certainties rank by position, the leftmost first. So do
those that differ by rounding alone: a network without absolute positions gives every position of an
empty sequence the same distribution, up to its last digits, and these depend on the batch.
Therefore certainties are ranked in units of 2^-14: tokens of p > 0.99997 are equally sure.

    method          certainty               k
    "confidence"    p(token)                the number that is due
    "margin"        p(1st) - p(2nd)         the number that is due
    "entropy"       minus the entropy       the number that is due
    "threshold"     p(token)                all with p(token) >= threshold
    "entropy_bound" minus the entropy       the most for which the sum of their entropies, without
                                            the largest, is at most the bound

The number that is due spreads the positions evenly over the steps. The last two accept at least as
many, so that the steps suffice; with steps=None one position is due, which is the published rule.

Source: "confidence": Chang et al. 2022 (arXiv 2202.04200), section 3.2, and Nie et al. 2025 (arXiv
2502.09992), section 2.4; "margin": Kim et al. 2025 (arXiv 2502.06768), section 4.1; "entropy": Ye
et al. 2025 (arXiv 2508.15487); "threshold": Wu et al. 2025 (arXiv 2505.22618), section 3.3;
"entropy_bound": Ben-Hamu et al. 2025 (arXiv 2505.24857), section 4.
"""

import math

import torch
from torch import Tensor

from sedd_fast.names import Certainty
from sedd_fast.sampling.config import SamplerConfig

_UNIT = 2.0**-14  #: of certainties that are ranked
_ROUNDING = 2.0**-20  #: of bounds, in nats: certainties are float32 where a head gives them

#: What each method ranks positions by.
CERTAINTY: dict[str, Certainty] = {
    "confidence": "log_prob",
    "margin": "margin",
    "entropy": "entropy",
    "threshold": "log_prob",
    "entropy_bound": "entropy",
}


def accepted(certainty: Tensor, eligible: Tensor, due: Tensor, config: SamplerConfig) -> Tensor:
    """(R, L) bool: the positions that a step accepts.

    Args:
        certainty: (R, L) float64, more is surer; read at eligible positions alone.
        eligible: (R, L) bool, at least one in every row.
        due: (R,) int64, the least number of positions to accept; at most as many as are eligible.
        config: the method and its bound.
    """
    lowest = torch.finfo(certainty.dtype).min
    certainty = torch.where(eligible, certainty.clamp(min=lowest), -torch.inf)
    order = (certainty / _UNIT).round().sort(stable=True, dim=-1, descending=True).indices
    count = due.clamp(min=1)
    if config.method == "threshold":
        least = math.log(config.threshold) - _ROUNDING
        count = torch.maximum(count, (certainty >= least).sum(-1))
    elif config.method == "entropy_bound":
        entropy = -certainty.gather(-1, order)  # infinite where not eligible
        without_largest = entropy.cumsum(-1) - entropy.cummax(-1).values
        fits = without_largest <= config.entropy_bound + _ROUNDING
        count = torch.maximum(count, fits.sum(-1))
    count = torch.minimum(count, eligible.sum(-1))
    place = torch.arange(certainty.shape[-1], device=certainty.device)
    return torch.zeros_like(eligible).scatter(-1, order, place < count[:, None])
