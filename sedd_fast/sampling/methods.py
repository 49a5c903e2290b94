"""The table of samplers; ``sedd_fast.sample`` and ``sedd_fast.infill`` run them."""

from torch import Tensor

from sedd_fast.names import Method
from sedd_fast.sampling.canvas import CanvasSampler
from sedd_fast.sampling.decoding import DecodingSampler
from sedd_fast.sampling.grid import OneCallSampler
from sedd_fast.sampling.hit import HitSampler
from sedd_fast.sampling.reverse_process import ReverseProcess
from sedd_fast.sampling.sampler import Sampler
from sedd_fast.sampling.trapezoidal import TrapezoidalSampler

#: Every method of ``sample`` and ``infill``, by name.
SAMPLERS: dict[Method, type[Sampler]] = {
    "analytic": OneCallSampler,
    "euler": OneCallSampler,
    "tau_leaping": OneCallSampler,
    "theta_trapezoidal": TrapezoidalSampler,
    "hit": HitSampler,
    "confidence": DecodingSampler,
    "margin": DecodingSampler,
    "entropy": DecodingSampler,
    "threshold": DecodingSampler,
    "entropy_bound": DecodingSampler,
}


def make_sampler(process: ReverseProcess, x: Tensor) -> Sampler:
    """The sampler of a process from the tokens x (B, L) at time 1, known ones in place."""
    kind: type[Sampler] = SAMPLERS[process.config.method]
    if kind is DecodingSampler and process.graph.mask_index is None:
        kind = CanvasSampler
    return kind(process, x)  # type: ignore[call-arg, arg-type]
