"""The draw of the original code, fp32 Gumbel noise and all, to reproduce what papers sampled.

It takes argmax_y p_y / e_y, e_y = 1e-10 - ln(u_y + 1e-10) with a float32 uniform u_y. The e_y are
exponential variables only roughly: u has 24 bits, so that e_y is a multiple of 6e-8 near 0, and
never above 23. A state of less than 2e-9 of the weight can never win, and one of less than 1e-7
wins too seldom: tokens far down the tail, and all moves together against "stay masked" where each
is that unlikely. docs/sampling.md has figures. For comparison only.

Source: the original's catsample.py; Zheng et al. 2024 (arXiv 2409.02908), section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sedd_fast.ops import reverse_probs
from sedd_fast.process.graphs import Graph


def gumbel_step(
    log_score: Tensor,
    x: Tensor,
    sigma: Tensor,
    removed: Tensor,
    graph: Graph,
    method: str,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """As :func:`sedd_fast.reverse_step`, drawn as the original draws; (B, L) int64.

    It makes several tensors of the size of the scores.
    """
    probs = reverse_probs(log_score, x, sigma, removed, graph, method, temperature, top_p).float()
    if method == "denoise":
        probs = probs[..., : graph.vocab_size]
    return gumbel_argmax(probs, generator)


def gumbel_argmax(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The original's draw from weights (..., n) float32, with one float32 uniform a state."""
    draw_on = probs.device if generator is None else generator.device
    u = torch.rand(probs.shape, dtype=torch.float32, device=draw_on, generator=generator)
    return (probs / (1e-10 - (u.to(probs.device) + 1e-10).log())).argmax(-1)
