"""A tau-leap: every position follows its own rates, held fixed, and jumps at most once.

Over a step of size h a position with jump rates r_y stays with probability exp(-h sum(r)) and else
jumps to y with probability r_y / sum(r). Unlike Euler's 1 - h sum(r) no probability can leave
[0, 1].
"""

from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.ops import reverse_step
from sedd_fast.ops._uniforms import Generator, uniforms
from sedd_fast.process.dense_graph import DenseGraph, categorical, leap_weights
from sedd_fast.process.graphs import Graph
from sedd_fast.sampling.pieces import in_pieces


def tau_leap(
    log_score: Tensor,
    x: Tensor,
    h: Tensor,
    graph: Graph,
    generator: Generator | None = None,
    **shares: Any,
) -> Tensor:
    """Tokens after a leap of size h along the rates r_y = Q[x, y] exp(l_y), y != x.

    Q[x, y] is 1 at a mask of the absorbing graph and 1/V at every token of the uniform graph; an
    absorbing position that is not masked does not move, and its row is not read.

    Args:
        log_score: (B, L, dim), -inf for a state that cannot be jumped to.
        x: (B, L) int64.
        h: () float64, step size times noise rate.
        graph: ``Absorbing(V)``, ``Uniform(V)`` or a ``DenseGraph``, with its own Q.
        generator: source of the uniforms: u0 decides whether to jump, u1 where.
        shares: temperature and top_p of :func:`sedd_fast.reverse_step`; not for a ``DenseGraph``.

    Returns:
        (B, L) int64.
    """
    if isinstance(graph, DenseGraph):
        return categorical(leap_weights(log_score, x, h, graph), x, generator)
    u = uniforms(x, None, generator)  # (B, L, 2)
    jumps = u[..., 0] < -torch.expm1(-h * total_rate(log_score, x, graph))
    # An Euler step with u0 = 0 always moves where it can, to y in proportion to exp(l_y).
    moves = torch.stack((torch.zeros_like(u[..., 1]), u[..., 1]), -1)
    drawn = reverse_step(log_score, x, 1.0, 1.0, graph, "euler", u=moves, **shares)
    return torch.where(jumps, drawn, x)


def total_rate(log_score: Tensor, x: Tensor, graph: Graph) -> Tensor:
    """(B, L) float64: sum over y != x of Q[x, y] exp(l_y), 0 where nothing can move."""
    total = in_pieces(_row_sums, log_score, x)
    if graph.mask_index is None:
        return total / graph.vocab_size
    return torch.where(x == graph.mask_index, total, 0.0)


def _row_sums(log_score: Tensor, x: Tensor) -> Tensor:
    others = log_score.scatter(-1, x[..., None], -torch.inf)
    return at_least_fp32(others).logsumexp(-1).double().exp()
