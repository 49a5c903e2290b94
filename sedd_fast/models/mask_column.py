"""Rows over all states, and rows over the real tokens alone: the mask's column is missing there.

Both have the states in their natural order. Where the mask is the last state, a token has the same
number in both, and a row of one is the beginning of a row of the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sedd_fast.ops import _arguments as arguments
from sedd_fast.process.graphs import Graph


def without_mask(rows: Tensor, graph: Graph) -> Tensor:
    """Rows over the real tokens: (..., graph.dim), or (..., V) as they are, -> (..., V)."""
    mask = graph.mask_index
    if mask is None or rows.shape[-1] == graph.vocab_size:
        return rows
    if mask == graph.vocab_size:
        return rows[..., :mask]
    return torch.cat((rows[..., :mask], rows[..., mask + 1 :]), -1)


def with_mask(rows: Tensor, graph: Graph) -> Tensor:
    """Rows over all states, 0 at the mask: (..., V) -> (..., graph.dim)."""
    mask = graph.mask_index
    if mask is None:
        return rows
    if mask == graph.vocab_size:
        return F.pad(rows, (0, 1))
    return torch.cat((rows[..., :mask], torch.zeros_like(rows[..., :1]), rows[..., mask:]), -1)


def column_of(tokens: Tensor, graph: Graph) -> Tensor:
    """The columns of real tokens in rows without the mask, int64."""
    mask = graph.mask_index
    return tokens if mask is None or mask == graph.vocab_size else tokens - (tokens > mask).long()


def check_logits(logits: Tensor, graph: Graph) -> None:
    """Raise unless logits are (B, L, V), or (B, L, V + 1) with the mask, of a floating dtype."""
    arguments.check_graph(graph)
    arguments.check_floating("logits", logits)
    allowed = sorted({graph.vocab_size, graph.dim})
    if logits.dim() != 3 or logits.shape[-1] not in allowed:
        shapes = " or ".join(f"(B, L, {width})" for width in allowed)
        raise ValueError(
            f"logits must have shape {shapes} for the {graph.kind} graph over {graph.vocab_size} "
            f"tokens, got {tuple(logits.shape)}; make the network's output and the graph agree"
        )
