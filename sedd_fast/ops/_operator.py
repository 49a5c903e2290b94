"""How a function becomes an operator of torch's dispatcher.

``operator`` does what ``torch.library.custom_op`` does, through the older functions of
``torch.library``. The wrappers of custom_op were an eighth of the time that an eager call spent in
Python, a quarter where a gradient was recorded (benchmarks/studies/launch_overhead.py), and its
first call imported torch's compiler, which takes a second. Left out is its check that no result
shares memory with an argument: the tests make it (``torch.library.opcheck``).

An operator with a gradient is two entries in the dispatcher: ``sedd_fast::NAME``, whose autograd
kernel records the gradient where one is wanted, and ``sedd_fast::NAME_kernel``, of which autograd
knows nothing. The first one runs the second, which is also called where no gradient is wanted.

An eager call that records no gradient bypasses the dispatcher where nothing needs to see it there
(``_can_bypass_dispatcher``): the dispatcher converts every argument twice, and with cold caches
loading its code takes longer than a small operation.

Under torch.func several transforms may differentiate one call. The dispatcher runs the autograd
kernel for each of them, the innermost first; the kernel records the gradient of that one, and calls
the first entry again for the others.

A function may take the argument objects of ``sedd_fast.backends``. The dispatcher knows nothing of
them: an operator takes their fields one by one, and its function gets the objects back.
"""

import dataclasses
import sys
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import _C, Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from sedd_fast.backends.registry import BackendCode

_LIBRARY = torch.library.Library("sedd_fast", "FRAGMENT")


def operator(name: str) -> "Callable[[Callable[..., Any]], Operator]":
    """Make the operator ``sedd_fast::name`` of a function whose annotations give its schema.

    Parameters are what ``torch.library.infer_schema`` knows, or dataclasses of that. The function
    changes none of its arguments, and its results share no memory with them. If the last
    result is a ``BackendCode``, the dispatcher gets it as a tensor.
    """
    return lambda function: Operator(name, function)


class Operator:
    """A function as an operator; call it with positional arguments."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function
        self._arguments = _Arguments(function)
        self._flat = self._arguments.taking_fields(function)
        self._schema = torch.library.infer_schema(self._flat, mutates_args=())
        self._fake: Callable[..., Any] | None = None
        self._entry = self._kernel = self._define(name)

    def __call__(self, *args: Any) -> Any:
        tensors = self._arguments.tensors(*args)
        wants = _wants_gradient(tensors)
        if not wants and _can_bypass_dispatcher(tensors):
            return self._function(*args)
        flat = self._arguments.flatten(*args)
        # In a trace of Dynamo, and under torch.func, a tensor does not say who differentiates it.
        recording = wants or is_dynamo_compiling() or _C._are_functorch_transforms_active()
        if recording or forward_ad._current_level >= 0:
            return self._entry(*flat)
        return self._kernel(*flat)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """The shapes, dtypes and devices of the results, for tracing."""
        self._fake = self._arguments.taking_fields(fake)
        torch.library.register_fake(f"sedd_fast::{self._name}", self._fake, lib=_LIBRARY)

    def register_autograd(
        self,
        backward: Callable[..., Any],
        *,
        setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    ) -> None:
        """The gradient, with the arguments of ``torch.library.register_autograd``.

        ``setup_context`` gets the fields one by one. By default it keeps them for
        :meth:`saved_arguments`, as :meth:`save` does. ``backward`` may leave out the last
        gradients that are None. Call it after ``register_fake``.
        """
        no_forward_mode = (
            f"{self._name} has no forward-mode derivative; take a gradient by backward(), "
            "torch.autograd.grad or torch.func.grad"
        )
        self._register_autograd(backward, setup_context or self._save_with_code, no_forward_mode)

    def _save_with_code(self, ctx: Any, args: tuple[Any, ...], output: Any) -> None:
        self.save(ctx, args, output[-1:] if isinstance(output, tuple) else ())

    def refuse_gradient(self, message: str) -> None:
        """Raise an error with that message where a derivative is computed."""

        def refuse(ctx: Any, *_: Tensor | None) -> None:
            raise RuntimeError(message)

        self._register_autograd(refuse, lambda ctx, inputs, output: None, message)

    def _register_autograd(
        self,
        gradient: Callable[..., Any],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None],
        no_forward_mode: str,
    ) -> None:
        entry, kernel = self._entry, self._define(f"{self._name}_kernel")
        self._kernel = kernel
        if self._fake is not None:
            torch.library.register_fake(f"sedd_fast::{self._name}_kernel", self._fake, lib=_LIBRARY)
        recorded = _recorded(entry, kernel, gradient, setup_context)

        def autograd_kernel(*args: Any) -> Any:
            if _has_tangent(args):
                raise NotImplementedError(no_forward_mode)
            wants = _wants_gradient(args)
            if _C._are_functorch_transforms_active():
                return _apply(recorded, args) if wants else _below_transform(entry, args)
            return recorded.apply(*args) if wants else kernel(*args)

        _LIBRARY.impl(self._name, autograd_kernel, "Autograd")

    def save(self, ctx: Any, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        """A ``setup_context``: keep the arguments, and these outputs, which have no gradient."""
        ctx.set_materialize_grads(False)  # no zeros for outputs that nothing depends on
        ctx.mark_non_differentiable(*outputs)
        kept = (*args, *outputs)
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in kept))
        ctx.constants = [None if isinstance(x, Tensor) else x for x in kept]

    def saved_arguments(self, ctx: Any) -> tuple[Any, ...]:
        """The arguments of the forward call, then the outputs that were kept: by default the code
        of its backend, if it returned one.
        """
        flat = [
            constant if tensor is None else tensor
            for tensor, constant in zip(ctx.saved_tensors, ctx.constants, strict=True)
        ]
        count = self._arguments.count
        return (*self._arguments.pack(*flat[:count]), *flat[count:])

    def _define(self, name: str) -> Any:
        _LIBRARY.define(name + self._schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, _Untraced(self._flat), "CompositeExplicitAutograd")
        return getattr(torch.ops.sedd_fast, name).default


class _Arguments:
    """The parameters of a function, and the fields of those that are dataclasses."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        returned = hints.pop("return")
        field_types: dict[str, Any] = {}
        self._classes: dict[str, Any] = {}  # of the parameters that are dataclasses
        # Expressions: every field of the parameters, those that are tensors, every parameter.
        flat, tensors, packed = [], [], []
        for parameter, kind in hints.items():
            if not dataclasses.is_dataclass(kind):
                field_types[parameter] = kind
                flat.append(parameter)
                packed.append(parameter)
                if _is_tensor(kind):
                    tensors.append(parameter)
                continue
            types, given = typing.get_type_hints(kind), []
            for name in (field.name for field in dataclasses.fields(kind)):
                given.append(f"{parameter}_{name}" if name in field_types else name)
                field_types[given[-1]] = types[name]
                flat.append(f"{parameter}.{name}")
                if _is_tensor(types[name]):
                    tensors.append(flat[-1])
            self._classes[f"{parameter}_class"] = kind
            packed.append(f"{parameter}_class({', '.join(given)})")
        self.count = len(field_types)
        fields = ", ".join(field_types)
        # Written out, as dataclasses write their own methods: loops took 4 microseconds a call.
        #: Fields in place of dataclasses, and back.
        self.flatten = self._compiled(f"lambda {', '.join(hints)}: ({', '.join(flat)},)")
        self.tensors = self._compiled(f"lambda {', '.join(hints)}: ({', '.join(tensors)},)")
        self.pack = self._compiled(f"lambda {fields}: ({', '.join(packed)},)")
        self._returns_code = typing.get_args(returned)[-1:] == (BackendCode,)
        if self._returns_code:
            returned = tuple[(Tensor,) * len(typing.get_args(returned))]  # type: ignore[misc]
        self._annotations = field_types | {"return": returned}
        self._call = f"lambda {fields}: function({', '.join(packed)})"

    def _compiled(self, source: str, **names: Any) -> Callable[..., Any]:
        return eval(source, {**self._classes, **names})

    def taking_fields(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with fields in place of its dataclasses, and the annotations of these."""
        if self._returns_code:
            function = _with_code_tensor(function)
        made = self._compiled(self._call, function=function)
        made.__annotations__ = self._annotations
        return made


def _with_code_tensor(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its BackendCode as a tensor; fake implementations return one already."""

    def run(*args: Any) -> Any:
        *results, code = function(*args)
        return *results, code.tensor() if isinstance(code, BackendCode) else code

    return run


class _Untraced:
    """A function that torch.compile never looks into: the backend is chosen when it runs.

    A program that never compiles does not import the compiler, which takes a second.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._disabled = function, False

    def __call__(self, *args: Any) -> Any:
        if not self._disabled and "torch._dynamo" in sys.modules:
            self._function, self._disabled = torch.compiler.disable(self._function), True
        return self._function(*args)


def _recorded(
    entry: Callable[..., Any],
    kernel: Callable[..., Any],
    gradient: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
) -> type[torch.autograd.Function]:
    """A call as a node of autograd's graph."""

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            if _C._are_functorch_transforms_active():
                # For the outer transforms: here autograd has switched both modes off.
                with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                    output = _below_transform(entry, args)
            else:
                output = kernel(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if all(grad is None for grad in grads):  # nothing depends on the outputs
                return (None,) * len(ctx.needs_input_grad)
            made = gradient(ctx, *grads)
            return *made, *(None,) * (len(ctx.needs_input_grad) - len(made))

    return Recorded


def _apply(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """``function.apply`` for one transform of torch.func: that method would apply it for all."""
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def _below_transform(entry: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The operator as the transforms around the innermost one see it: each takes its gradient."""
    with _C._AutoDispatchBelowAutograd():
        return entry(*args)


def _wants_gradient(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for x in args:  # isinstance alone is slow: torch.Tensor has a metaclass
            if (type(x) is Tensor or isinstance(x, Tensor)) and x.requires_grad:
                return True
    return False


def _is_tensor(kind: Any) -> bool:
    return Tensor in (kind, *typing.get_args(kind))


def _can_bypass_dispatcher(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a call that records no gradient may run without the dispatcher: its tensors are plain
    ones, and no mode, transform, tracer or profiler is active that has to see the call.
    """
    if is_dynamo_compiling():
        return False
    for x in tensors:
        if x is not None and not _is_plain(x):
            return False
    return not (
        _C._len_torch_dispatch_stack()
        or _C._len_torch_function_stack()
        or _C._functorch.peek_interpreter_stack()  # vmap, grad, functionalize
        or _C._get_tracing_state()  # torch.jit.trace
        or _C._autograd._profiler_enabled()
        or _C._current_graph_task_id() >= 0  # inside a backward, which may be batched
        or forward_ad._current_level >= 0
    )


def _is_plain(x: Tensor) -> bool:
    """Whether x is of no subclass, and its memory holds its values as they are."""
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    lazy = x.is_neg() or x._is_zerotensor() or torch._is_functional_tensor(x)
    return not (lazy or x.is_meta)


def _has_tangent(args: tuple[Any, ...]) -> bool:
    if forward_ad._current_level < 0:
        return False
    tensors = (x for x in args if isinstance(x, Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
