"""Temperature and top-p: which token a position jumps to, not when. They change the distribution.

Both change the shares s_y / S of the states that a position may jump to and keep their sum S
(``sedd_fast.backends.reference.shares``), so that the probability of a jump stays the same. For the
absorbing graph the states are all real tokens, and a step's probability of unmasking is the same to
the last digit; with the uniform graph and "analytic", whose weights are not proportional to the
scores, only nearly so. Draws apply them inside the kernels (:func:`sedd_fast.reverse_step`); this
file does it in plain torch for a sampler that needs the scores themselves.
"""

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import fp32_or_fp64
from sedd_fast.backends.reference import reshaped
from sedd_fast.process.graphs import Graph
from sedd_fast.sampling.pieces import in_pieces


def filter_scores(
    log_score: Tensor, x: Tensor, graph: Graph, temperature: float = 1.0, top_p: float = 1.0
) -> Tensor:
    """Log scores (B, L, dim) with the new shares, at least float32; -inf for what is dropped.

    Rows of absorbing positions that are not masked, which nobody reads, stay as they are.

    Args:
        log_score: (B, L, dim).
        x: (B, L) int64, the tokens that the scores belong to.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        temperature: T > 0; below 1 likely tokens gain.
        top_p: p in (0, 1]; only the likeliest tokens whose shares reach p are kept.
    """
    if temperature == 1 and top_p == 1:
        return log_score
    filtered = log_score.to(fp32_or_fp64(log_score.dtype), copy=True)
    moving = torch.ones_like(x, dtype=torch.bool)
    if graph.mask_index is not None:
        moving = x == graph.mask_index

    def reshape(rows: Tensor, own: Tensor) -> Tensor:  # (N, dim), (N,)
        return reshaped(rows.scatter(-1, own[:, None], -torch.inf), temperature, top_p)

    filtered[moving] = in_pieces(reshape, filtered[moving], x[moving])
    return filtered
