"""How a function becomes an operator of torch's dispatcher.

``operator`` does what ``torch.library.custom_op`` does, through the older functions of
``torch.library``. The wrappers of custom_op were an eighth of the time that an eager call spent in
Python, a quarter where a gradient was recorded (benchmarks/studies/launch_overhead.py), and its
first call imported torch's compiler, which takes a second. Left out is its check that no result
shares memory with an argument: the tests make it (``torch.library.opcheck``).

An operator with a gradient is two entries in the dispatcher: ``sedd_fast::NAME``, whose autograd
kernel records the gradient where one is wanted, and ``sedd_fast::NAME_kernel``, of which autograd
knows nothing: what the first one runs, and what is called where no gradient is wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("sedd_fast", "FRAGMENT")


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Make the operator ``sedd_fast::name`` of a function whose annotations give its schema.

    The function changes none of its arguments, and its results share no memory with them.
    """
    return lambda function: Operator(name, function)


class Operator:
    """A function as an operator; call it with positional arguments."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function
        self._schema = torch.library.infer_schema(function, mutates_args=())
        self._fake: Callable[..., Any] | None = None
        self._entry = self._kernel = self._define(name)

    def __call__(self, *args: Any) -> Any:
        return self._entry(*args) if _wants_gradient(args) else self._kernel(*args)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """The shapes, dtypes and devices of the results, for tracing."""
        self._fake = fake
        torch.library.register_fake(f"sedd_fast::{self._name}", fake, lib=_LIBRARY)

    def register_autograd(
        self,
        backward: Callable[..., Any],
        *,
        setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    ) -> None:
        """The gradient, with the arguments of ``torch.library.register_autograd``.

        Call it after ``register_fake``.
        """
        self._kernel = self._define(f"{self._name}_kernel")
        if self._fake is not None:
            torch.library.register_fake(f"sedd_fast::{self._name}_kernel", self._fake, lib=_LIBRARY)
        recording = _autograd_kernel(self._kernel, backward, setup_context)
        _LIBRARY.impl(self._name, recording, "Autograd")

    def _define(self, name: str) -> Any:
        _LIBRARY.define(name + self._schema, tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(name, _Untraced(self._function), "CompositeExplicitAutograd")
        return getattr(torch.ops.sedd_fast, name).default


class _Untraced:
    """A function that torch.compile never looks into: the backend is chosen when it runs.

    Who never compiles does not import the compiler, which takes a second.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._disabled = function, False

    def __call__(self, *args: Any) -> Any:
        if not self._disabled and "torch._dynamo" in sys.modules:
            self._function, self._disabled = torch.compiler.disable(self._function), True
        return self._function(*args)


def _autograd_kernel(
    kernel: Callable[..., Any],
    gradient: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None,
) -> Callable[..., Any]:
    """What autograd does with a call: it records the gradient if some argument wants one."""

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = kernel(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if all(grad is None for grad in grads):  # nothing depends on the outputs
                return (None,) * len(ctx.needs_input_grad)
            return gradient(ctx, *grads)

    def run(*args: Any) -> Any:
        return Recorded.apply(*args) if _wants_gradient(args) else kernel(*args)

    return run


def _wants_gradient(args: tuple[Any, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in args)
