"""Whether a module still computes what its class defines, so that its weight may be read directly.

The fused head multiplies by the weight of the last layer and never calls that layer. The result is
the layer's only if a call would run the forward of its class and nothing else. It is not for an
adapter (LoRA), a pruned, parametrised, quantised or sharded layer, one with hooks, or one with a
forward of its own: those are called, and give log scores.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks

#: Packages whose wrappers of a network, and whose hooks on it, pass on what its forward returns.
_TRANSPARENT = ("torch", "accelerate")
_METHODS: dict[type, dict[str, Any]] = {}


def record(kind: type, *names: str) -> None:
    """Keep these methods of a class as its definition, before a user can replace one."""
    _METHODS[kind] = {name: getattr(kind, name) for name in names}


def has_own_methods(module: nn.Module) -> bool:
    """Whether the methods are those recorded for its class, or for the nearest of its bases."""
    kind = type(module)
    methods = _METHODS.get(kind) or next(_METHODS[c] for c in kind.__mro__ if c in _METHODS)
    for name, method in methods.items():
        if getattr(kind, name, None) is not method or name in module.__dict__:
            return False
    return True


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is the forward of ``kind`` and nothing else."""
    if type(module) is not kind or not has_own_methods(module):
        return False
    hooks = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
    return not hooks and not module_hooks._has_any_global_hook()


def forwards_requests(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a call of the module returns what ``forward`` returns.

    Hooks that may replace the result, and a forward set on the instance, are only accepted of torch
    (FSDP2) and Accelerate (autocast): those of a user expect log scores.
    """
    hooks = (*module._forward_hooks.values(), *module_hooks._global_forward_hooks.values())
    if not all(_is_transparent(hook) for hook in hooks):
        return False
    found = module.__dict__.get("forward", type(module).forward)
    while (found := getattr(found, "__func__", found)) is not forward:
        if found is None or not _is_transparent(found):
            return False
        found = getattr(found, "__wrapped__", None)
    return True


def _is_transparent(function: Any) -> bool:
    """Whether a function was defined by one of these packages (``functools.wraps`` hides that)."""
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", None)
    place = names["__name__"] if names is not None else type(function).__module__
    return place.partition(".")[0] in _TRANSPARENT


record(nn.Linear, "forward")
