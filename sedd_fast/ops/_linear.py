"""What the operations on a linear head share: checks of its operands, its dtype, its gradients."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends import head, registry
from sedd_fast.backends.head import Linear, NeedsGrad
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
    _check_operands(hidden, weight, bias, {3: "(B, L, H)"})
    if len(weight) != graph.dim:
        raise ValueError(
            f"weight must have shape {(graph.dim, hidden.shape[-1])} for the {graph.kind} graph "
            f"over {graph.vocab_size} tokens ({graph.dim} states), got {tuple(weight.shape)}"
        )
    _check_bias(bias, weight)
    default = head.workspace(hidden.device)
    return _linear(hidden, weight, bias, rows, _checked_workspace(workspace, default))


def checked_softmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: TouchedRows | None,
    workspace: int | None,
) -> Linear:
    """The same for operations that know no graph; hidden (B, L, H), or (N, H), which is (1, N, H).

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or size; the message says which.
    """
    _check_operands(hidden, weight, bias, {3: "(B, L, H)", 2: "(N, H)"})
    if len(weight) < 1:
        raise ValueError(f"weight must have at least one state, got shape {tuple(weight.shape)}")
    _check_bias(bias, weight)
    workspace = _checked_workspace(workspace, 0)
    return _linear(hidden[None] if hidden.dim() == 2 else hidden, weight, bias, rows, workspace)


def checked_excluded(excluded: int | Sequence[int] | None, states: int) -> list[int]:
    """States as a rising list without repetitions.

    Raises:
        TypeError: no integers.
        ValueError: one is no state, or no other is left.
    """
    if excluded is None:
        return []
    one = arguments.whole(excluded) is not None or not hasattr(excluded, "__iter__")
    found = sorted({_state(value) for value in ([excluded] if one else excluded)})  # type: ignore[union-attr]
    if found and not 0 <= found[0] <= found[-1] < states:
        bad = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"excluded must hold states 0 .. {states - 1} of the weight, got {bad}")
    if len(found) == states:
        raise ValueError(f"excluded must leave a state, got all {states}")
    return found


def _state(value: object) -> int:
    if (number := arguments.whole(value)) is None:
        raise TypeError(f"excluded must be an int or ints, got {type(value).__name__}")
    return number


def checked_softcap(softcap: float | None) -> float:
    """0 for None; TypeError, ValueError unless it is a positive finite number."""
    if softcap is None:
        return 0.0
    arguments.check_numbers(softcap=softcap)
    if not 0 < softcap < float("inf"):
        raise ValueError(f"softcap must be positive and finite, or None for none, got {softcap}")
    return float(softcap)


def _check_operands(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shapes: dict[int, str]
) -> None:
    """``shapes``: what hidden may be, by its number of dimensions."""
    for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if value is not None:
            arguments.check_floating(name, value)
    if hidden.dim() not in shapes:
        allowed = " or ".join(shapes.values())
        raise ValueError(f"hidden must have shape {allowed}, got {tuple(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must have shape (states, {hidden.shape[-1]}) for hidden states of that width, "
            f"got {tuple(weight.shape)}"
        )
    arguments.check_device("weight", weight, hidden, "hidden")


def _check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        return
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {tuple(weight.shape[:1])}, a number for each of the states of "
            f"weight, got {tuple(bias.shape)}"
        )
    arguments.check_device("bias", bias, weight, "weight")


def _checked_workspace(workspace: int | None, default: int) -> int:
    if workspace is None:
        return default
    if isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 1:
        raise ValueError(f"workspace must be a positive number of bytes, got {workspace!r}")
    return workspace


def _linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: TouchedRows | None, workspace: int
) -> Linear:
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


def gradients_ahead() -> bool:
    """Whether gradients may be formed in the forward pass.

    torch.func may differentiate the backward: its result must not be a constant of the forward.
    """
    return torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()


def empty_gradients(
    linear: Linear, needs: NeedsGrad, dtype_of: Callable[[torch.dtype], torch.dtype]
) -> tuple[Tensor, ...]:
    """What a fake kernel returns for the gradients of the operands."""
    return tuple(
        x.new_empty(x.shape if need else 0, dtype=dtype_of(x.dtype))
        for x, need in zip(linear.operands, needs, strict=True)
    )


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """``setup_context`` of an operation that returns a loss () and gradients of its operands."""
    ctx.set_materialize_grads(False)  # zeros for outputs that have no gradient, one as the weight
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]


def scaled_gradients(no_second_derivative: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward of such an operation; that message is the error of a second derivative."""

    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: the gradients would pass for constants
            raise RuntimeError(no_second_derivative)
        made = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        return tuple(
            scale_gradient(gradient, upstream, dtype) if need else None
            for gradient, dtype, need in made
        )

    return backward


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
