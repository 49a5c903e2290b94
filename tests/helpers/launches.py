"""Counts what a backend would launch on a GPU, in Triton's interpreter."""

from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that make a tensor and launch nothing.
MEMORY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Launches(TorchDispatchMode):
    """Counts torch operations that would launch a kernel on a GPU, those that synchronise the
    device, and launches of Triton kernels, by name, with their arguments.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from triton.runtime.interpreter import InterpretedFunction

        self.operations: list[str] = []
        self.waits: list[str] = []
        self.kernels: list[tuple[str, tuple[Any, ...]]] = []
        self._inside = False
        original = InterpretedFunction.run

        def run(kernel: Any, *args: Any, **options: Any) -> Any:
            self.kernels.append((kernel.fn.__name__, args))
            return self._uncounted(original, kernel, *args, **options)

        monkeypatch.setattr(InterpretedFunction, "run", run)

    def _uncounted(self, function: Any, *args: Any, **rest: Any) -> Any:
        """Do not count the torch operations of the interpreter itself."""
        self._inside = True
        try:
            return function(*args, **rest)
        finally:
            self._inside = False

    def one(self, name: str, function: Any) -> Any:
        """``function``, counted as one operation."""

        def call(*args: Any, **rest: Any) -> Any:
            self.operations.append(name)
            return self._uncounted(function, *args, **rest)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        if func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in ("nonzero", "_local_scalar_dense"):
            self.waits.append(name)
        if name not in MEMORY and not self._is_view(func, args, out):
            self.operations.append(name)
        return out

    @staticmethod
    def _is_view(func: Any, args: Any, out: Any) -> bool:
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        given = {x.data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)}
        viewing = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        same = not func._schema.is_mutable and all(x.data_ptr() in given for x in made)
        return viewing or bool(made and same)

    @property
    def count(self) -> int:
        return len(self.operations) + len(self.kernels)

    def number(self, kernel: str) -> int:
        """How often the kernel of that name was launched."""
        return sum(name == kernel for name, _ in self.kernels)


def watched(function: Any, mode: TorchDispatchMode) -> Any:
    def inside(*args: Any) -> Any:
        with mode:
            return function(*args)

    return inside
