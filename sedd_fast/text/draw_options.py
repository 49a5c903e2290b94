"""The options of drawing texts."""

from typing import TypedDict

from sedd_fast.names import Method
from sedd_fast.progress import Report
from sedd_fast.sampling.remask import Remask


class DrawOptions(TypedDict, total=False):
    """What `sample` and `infill` of a :class:`TextModel` share.

    The settings of the sampler are those of :func:`sedd_fast.sample`, with the same defaults;
    docs/sampling.md compares the methods. An autoregressive network draws a token a step and takes
    `temperature` and `top_p` alone.

    Args:
        steps: steps of the sampler, 128 by default; more are better. None with method "hit" and
            those that unmask first what the network is sure of: one position at a time.
        method, temperature, top_p, denoise, eps, theta, remask, legacy_fp32_gumbel, threshold,
            entropy_bound, block_length, guidance: those of
            :class:`sedd_fast.sampling.SamplerConfig`. A sample ends at end-of-text.
        seed: random seed, 0 .. 2^64 - 1; None: a new one from torch's generator, so that
            ``torch.manual_seed`` repeats it.
        batch_size: sequences at a time, 16 by default. It does not change the samples.
        keep_after_eot: do not cut a sample at its first end-of-text after all given text.
        progress: True: show the steps on stderr. A function: it is called with the number of steps
            made and their total, in each batch anew.
    """

    steps: int | None
    method: Method
    temperature: float
    top_p: float
    denoise: bool
    eps: float
    theta: float
    remask: Remask | None
    legacy_fp32_gumbel: bool
    threshold: float
    entropy_bound: float
    block_length: int | None
    guidance: float
    seed: int | None
    batch_size: int
    keep_after_eot: bool
    progress: bool | Report
