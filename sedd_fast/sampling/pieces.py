"""Work on large tensors of scores a few rows at a time, to save memory."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 1 << 22  #: number of scores processed together, about 16 MB


def in_pieces(function: Callable[..., Tensor], scores: Tensor, *others: Tensor) -> Tensor:
    """function(scores, *others) of tensors (N, ...), computed for a few of the N at a time.

    So the function's own tensors take little memory; only its result has the full size.
    """
    size = max(1, PIECE // max(1, scores[:1].numel()))
    pieces = zip(*(tensor.split(size) for tensor in (scores, *others)), strict=True)
    return torch.cat([function(*piece) for piece in pieces])
