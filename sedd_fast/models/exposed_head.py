"""The head of a user's network that exposes its hidden states, and whether logits come from it.

What the network's logits are is said by the user, since a network's own forward may do anything:

    logits = head(hidden(network, x_t, sigma)),   or softcap * tanh(that / softcap)

A call computed from hidden states bypasses the network's forward. It is right only as long as that
forward does nothing else: no hooks, no other layer in the head's place, no wrapper around it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.models import overrides
from sedd_fast.models.interface import wrapped_by_torch
from sedd_fast.ops._linear import checked_softcap
from sedd_fast.process.graphs import Graph


def checked(network: Any, graph: Graph, hidden: Any, head: Any, softcap: float | None) -> str:
    """The head's name in the network, after checks of :class:`sedd_fast.PosteriorModel`'s options.

    Raises:
        TypeError, ValueError: an option is missing, or of a kind that would give wrong results.
    """
    if hidden is None or head is None:
        raise ValueError(
            "hidden and head belong together: pass both, and softcap beside them, or none"
        )
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network must be an nn.Module where head is given, got {type(network).__name__}"
        )
    if wrapped_by_torch(network) is not None:
        raise ValueError(
            f"network must not be wrapped where hidden and head are given, got "
            f"{type(network).__name__}, whose forward they bypass; wrap the PosteriorModel instead"
        )
    owner = hidden if isinstance(hidden, nn.Module) else getattr(hidden, "__self__", None)
    if not callable(hidden) or isinstance(owner, nn.Module):
        raise TypeError(
            "hidden must be a function of the network and its inputs, such as "
            "lambda network, x_t: network.model(x_t).last_hidden_state, got "
            f"{type(hidden).__name__}: a copy of the model would run the weights of that module"
        )
    if not isinstance(head, nn.Linear):
        raise TypeError(
            f"head must be an nn.Linear, got {type(head).__name__}; leave hidden and head out to "
            "form the logits"
        )
    checked_softcap(softcap)
    _check_rows(head, graph)
    for name, module in network.named_modules():
        if module is head:
            return name
    raise ValueError("head must be a module of the network: its parameters are those of the model")


def _check_rows(head: nn.Linear, graph: Graph) -> None:
    """A row for every state, or for every token where the mask is the last state."""
    rows = len(head.weight)
    if rows < graph.dim and not (rows == graph.vocab_size == graph.mask_index):
        raise ValueError(
            f"head has {rows} rows, but the {graph.kind} graph over {graph.vocab_size} tokens has "
            f"{graph.dim} states; make the network's output and the graph agree"
        )


def plain(network: nn.Module, name: str) -> nn.Linear | None:
    """The head of that name, if the network's forward and the head do nothing else.

    Hooks on a module that the head is part of run on hidden states where the head is left out.
    """
    parts = name.split(".")[:-1]
    for i in range(len(parts) + 1):  # the network and the modules that lead to its head
        module = network.get_submodule(".".join(parts[:i]))
        if overrides.has_hooks(module) or "forward" in module.__dict__:
            return None
    head: nn.Module = network.get_submodule(name)
    return head if overrides.is_plain(head, nn.Linear) else None  # type: ignore[return-value]


def excluded(head: nn.Linear, graph: Graph, zero_masking: bool) -> tuple[int, ...]:
    """The rows of the head without probability: the mask, and what is no state."""
    rows, mask = len(head.weight), graph.mask_index
    masked = (mask,) if zero_masking and mask is not None and mask < rows else ()
    return (*masked, *range(graph.dim, rows))


def compare(f: Tensor, logits: Tensor, softcap: float | None) -> None:
    """Raise a ValueError unless the network's logits are the head's output f, up to rounding."""
    if softcap is not None:
        f = softcap * torch.tanh(f / softcap)
    if f.shape != logits.shape:
        raise ValueError(
            f"check_head: the network's logits have shape {tuple(logits.shape)}, head's output for "
            f"hidden {tuple(f.shape)}; pass the layer that makes the logits as head"
        )
    off, largest = float((f - logits).abs().max()), float(logits.abs().max())
    if not off <= max(4 * torch.finfo(logits.dtype).eps, 2e-3) * largest:
        raise ValueError(
            f"check_head: the network's logits differ from head's output for hidden by up to "
            f"{off:.3g}, where the largest is {largest:.3g}; let hidden return what the network "
            "applies its head to, and pass its softcap, or leave hidden and head out"
        )
