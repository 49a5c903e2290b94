"""What the operations on a linear head share: checks of its operands, and its dtype."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sedd_fast.backends import head, registry
from sedd_fast.backends.head import Linear
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops.touched_rows import TouchedRows


def checked_linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    graph: arguments.GraphLike,
    rows: TouchedRows | None,
    workspace: int | None,
) -> Linear:
    """The head, computed in the dtype of autocast where that is on, else in that of the operands.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or size; the message says which.
    """
    arguments.check_graph(graph)
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if value is not None:
            arguments.check_floating(name, value)
    if hidden.dim() != 3:
        raise ValueError(f"hidden must have shape (B, L, H), got {tuple(hidden.shape)}")
    for name, value, shape in (
        ("weight", weight, (graph.dim, hidden.shape[-1])),
        ("bias", bias, (graph.dim,)),
    ):
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} for hidden states of that width and the "
                f"{graph.kind} graph over {graph.vocab_size} tokens ({graph.dim} states), got "
                f"{tuple(value.shape)}"
            )
        arguments.check_device(name, value, hidden, "hidden")
    if workspace is None:
        workspace = head.workspace(hidden.device)
    if isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace!r}")
    listed = None if rows is None else rows.index
    return Linear(hidden, weight, bias, listed, _dtype(hidden, weight), workspace)


def _dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if _is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"hidden is {hidden.dtype} but weight {weight.dtype}; convert one, or run under "
            "torch.autocast"
        )
    return hidden.dtype


def check_inputs(
    hidden: Tensor, graph: arguments.GraphLike, scale_by_sigma: bool, **tokens: Tensor
) -> None:
    """Tokens beside the hidden states; no scaled uniform head, which nothing defines."""
    if scale_by_sigma and graph.kind != "absorbing":
        raise ValueError(
            "scale_by_sigma=True is defined for the absorbing graph only, got the "
            f"{graph.kind} graph; pass scale_by_sigma=False"
        )
    arguments.check_all_tokens(tokens, hidden, "hidden")


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, inside an operation: its dtypes are chosen, and must not be cast again."""
    if _is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _is_autocast_enabled(kind: str) -> bool:
    return kind != "meta" and torch.is_autocast_enabled(kind)  # which raises for "meta"


def scale_gradient(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient formed in the forward pass times the loss's own, (), which is usually 1.

    It is not copied where that factor is 1. On a CPU the host reads the factor; on a GPU, where
    that would synchronise the device, a kernel reads it and returns at once. It is copied where the
    graph is kept, or the next backward would return the same memory again.
    """
    if type(upstream) is Tensor:  # not while traced
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
        if upstream.device.type == "cpu" and upstream.item() == 1:
            return gradient.to(dtype, copy=kept)
        if upstream.is_cuda and registry.unavailable("triton", "cuda") is None:
            from sedd_fast.backends.triton.scale_gradient import scale_gradient

            return scale_gradient(gradient, upstream, dtype, in_place=not kept)
    return (gradient * upstream.to(gradient.dtype)).to(dtype)
