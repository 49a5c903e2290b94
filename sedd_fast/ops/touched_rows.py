"""Which positions a fused head has to compute, found without synchronising the device.

The number of touched rows decides the sizes of the head's products, so the host must know it.
Counted right after x_t is made, it is copied to the host while the network's body runs, and is
there when the head needs it:

    rows = sf.touched_rows(x_t, graph, row_weight)
    hidden = body(x_t, sigma)
    loss = sf.linear_score_entropy(hidden, ..., rows=rows)

With ``max_rows`` nothing is counted on the host: the list always has that length, as a CUDA graph
needs it.
"""

import torch
from torch import Tensor

from sedd_fast.backends.inputs import touched
from sedd_fast.ops import _arguments as arguments


class TouchedRows:
    """The touched positions of a batch; made by :func:`touched_rows`.

    Attributes:
        overflow: () bool on the device, True where ``max_rows`` was too small; None without one.
    """

    def __init__(self, order: Tensor, count: Tensor | None, overflow: Tensor | None) -> None:
        self._order, self._count, self.overflow = order, count, overflow
        self._copied = None
        if count is not None and count.device.type == "cpu" and order.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(order.device))

    @classmethod
    def at(cls, index: Tensor) -> "TouchedRows":
        """Exactly these positions b * L + i, (R,) int64, whatever else is touched."""
        return cls(index, None, None)

    @property
    def index(self) -> Tensor:
        """(R,) int64 positions b * L + i; -1 fills a list of fixed length.

        On a GPU without ``max_rows`` this waits until the count is on the host.
        """
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._order if self._count is None else self._order[: int(self._count)]


def touched_rows(
    x_t: Tensor,
    graph: arguments.GraphLike,
    row_weight: Tensor | None = None,
    max_rows: int | None = None,
) -> TouchedRows:
    """The positions that carry a loss or may move: masked (absorbing) or all, of weight not 0.

    Args:
        x_t: (B, L) int64, noised tokens.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        row_weight: (B, L); positions of weight 0 are left out.
        max_rows: length of the list, for static shapes (CUDA graphs). Where more are touched,
            ``overflow`` is True, and losses made with these rows are NaN with zero gradient.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; max_rows below 1.
    """
    arguments.check_graph(graph)
    arguments.check_tokens("x_t", x_t)
    weight = arguments.per_position("row_weight", row_weight, x_t)
    _, _, mask_index = arguments.process(graph)
    where = touched(x_t, weight, mask_index).flatten()
    if max_rows is not None:
        max_rows = arguments.check_count("max_rows", max_rows, hint="; B * L always suffices")
        number, rows = where.sum(), _touched_first(where)[:max_rows]
        index = torch.arange(len(rows), device=rows.device)
        rows = torch.where(index < number, rows, -1)
        return TouchedRows(rows, None, number > max_rows)
    if not where.is_cuda:
        return TouchedRows(where.nonzero().squeeze(-1), None, None)
    count = torch.empty((), dtype=torch.int64, pin_memory=True)
    count.copy_(where.sum(), non_blocking=True)
    return TouchedRows(_touched_first(where), count, None)


def _touched_first(where: Tensor) -> Tensor:
    """All positions, the touched ones first and in order."""
    return torch.argsort(where, descending=True, stable=True)
