"""Whether a module still computes what its class defines, so that its weight may be read directly.

The fused head multiplies by the weight of the last layer and never calls that layer. The result is
the layer's only if a call would run the forward of its class and nothing else. It is not for an
adapter (LoRA), a pruned, parametrised, quantised or sharded layer, one with hooks, or one with a
forward of its own: those are called, and give log scores.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

#: Packages whose wrappers of a network, and whose hooks on it, pass on what its forward returns.
_TRANSPARENT = ("torch", "accelerate")
_METHODS: dict[type, dict[str, Any]] = {}
_CALL = nn.Module.__call__


def record(kind: type, *names: str) -> None:
    """Keep these methods of a class as its definition, before a user can replace one.

    A method that was replaced before, by a function of another module, is kept as None: no module
    of the class has its own methods then.
    """
    _METHODS[kind] = {}
    for name in names:
        place = next(c.__module__ for c in kind.__mro__ if name in c.__dict__)
        method = getattr(kind, name)
        own = getattr(method, "__globals__", {}).get("__name__") == place
        _METHODS[kind][name] = method if own else None


def has_own_methods(module: nn.Module, *names: str) -> bool:
    """Whether the methods are those recorded for its class, or for the nearest of its bases.

    Of all that are recorded, or of those named.
    """
    kind = type(module)
    methods = _METHODS.get(kind) or next(_METHODS[c] for c in kind.__mro__ if c in _METHODS)
    for name in names or methods:
        method = methods[name]
        if method is None or getattr(kind, name, None) is not method or name in module.__dict__:
            return False
    return True


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is the forward of ``kind`` and nothing else."""
    if type(module) is not kind or not has_own_methods(module) or has_hooks(module):
        return False
    return not module_hooks._has_any_global_hook()


def is_dense(linear: nn.Linear) -> bool:
    """Whether the layer's numbers are in its tensors: not sharded, not quantised (subclasses)."""
    plain = (Tensor, nn.Parameter, type(None))
    return type(linear.weight) in plain and type(linear.bias) in plain


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody, torch included, has registered a hook on this module."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def hooks_take_requests(module: nn.Module) -> bool:
    """Whether all hooks that a call of the module runs are torch's (FSDP2) or Accelerate's.

    Those of a user expect the arguments of a plain call, and log scores.
    """
    if has_hooks(module) or module_hooks._has_any_global_hook():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
            module_hooks._global_forward_hooks,
            module_hooks._global_forward_pre_hooks,
            module_hooks._global_backward_hooks,
            module_hooks._global_backward_pre_hooks,
        ):
            for hook in hooks.values():
                if not _is_transparent(hook):
                    return False
    return True


def forwards_requests(module: nn.Module, forward: Callable[..., Any] | None = None) -> bool:
    """Whether a call of the module passes a request to ``forward``, and returns what that returns.

    Hooks, a forward set on the instance and what encloses ``forward`` are only accepted of torch
    (FSDP2) and Accelerate (autocast): those of a user expect log scores. None stands for the
    forward of a wrapper that torch defines.
    """
    called = type(module).__call__
    if called is not _CALL and not _leads_to(called, None):
        return False
    found = module.__dict__.get("forward", type(module).forward)
    return hooks_take_requests(module) and _leads_to(found, forward)


def _leads_to(found: Any, forward: Callable[..., Any] | None) -> bool:
    """Whether a function is ``forward``, or encloses it by functions of these packages only."""
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
