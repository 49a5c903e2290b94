"""Checks of values (not of shapes): tokens in range, positive noise, uniforms in [0, 1).

The operations make them once, before their backend runs: on the CPU always, on CUDA only with
SEDD_FAST_CHECK=1, because reading a value back synchronises the device. The C++ kernels of the CPU
make the same tests in their one pass; their functions, marked with :func:`checked_by_kernel`, call
:func:`check` only to word the error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sedd_fast.backends.inputs import OpInputs

_Function = TypeVar("_Function", bound=Callable[..., Any])


def enabled(device: torch.device) -> bool:
    """Whether values on that device are checked."""
    return device.type == "cpu" or os.environ.get("SEDD_FAST_CHECK", "0") == "1"


def checked_by_kernel(function: _Function) -> _Function:
    """Mark a backend's function whose kernel checks the values of its inputs."""
    function.checks_values = True  # type: ignore[attr-defined]
    return function


def check_for(run: Callable[..., Any], inputs: OpInputs) -> None:
    """Check the inputs of a backend's function, unless its kernel does that."""
    if not getattr(run, "checks_values", False):
        check(inputs)


def check(inputs: OpInputs) -> None:
    """Raise a ValueError that names the first argument with an impossible value.

    Raises:
        ValueError: a token out of range, x_0 at the mask, noise that is not positive and finite,
            a uniform outside [0, 1).
    """
    if not enabled(inputs.device):
        return
    for name, value in inputs.tensors().items():
        if name in ("sigma", "dsigma"):
            _check_noise(name, value)
        elif name == "x_t":
            _check_tokens(name, value, inputs.dim, f"states 0 .. {inputs.dim - 1}")
        elif name == "x_0":
            _check_clean(value, inputs.graph, inputs.vocab_size)
        elif name == "u":
            _check_uniforms(value)


def check_drawable(drawable: Tensor) -> None:
    """Raise a ValueError for the first row from which no token can be drawn.

    Args:
        drawable: (B, L) bool.
    """
    if enabled(drawable.device) and not bool(drawable.all()):
        raise undrawable(tuple(int(i) for i in (~drawable).nonzero()[0]))


class UndrawableError(ValueError):
    """No token can be drawn from a row; ``position`` is its index."""

    def __init__(self, message: str, position: tuple[int, ...]) -> None:
        super().__init__(message)
        self.position = position


def undrawable(position: tuple[int, ...], of: str = "log_score") -> UndrawableError:
    """The error for a row whose weights are all zero or not finite."""
    return UndrawableError(
        f"{of} at position {position} gives no distribution: every weight is zero, or one is "
        "not finite; look for NaN or infinite scores in the network's output",
        position,
    )


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in bad.nonzero()[0])


def _check_noise(name: str, value: Tensor) -> None:
    bad = ~(value > 0) if name == "sigma" else ~(value >= 0)
    bad = bad | ~torch.isfinite(value)
    if bool(bad.any()):
        where = _first(bad)
        bound = "positive" if name == "sigma" else "non-negative"
        raise ValueError(
            f"{name} must be {bound} and finite, got {value[where].item()} for sequence "
            f"{where[0]}; take it from a noise schedule at t in (0, 1]"
        )


def _check_tokens(name: str, tokens: Tensor, size: int, allowed: str) -> None:
    bad = (tokens < 0) | (tokens >= size)
    if bool(bad.any()):
        where = _first(bad)
        raise ValueError(
            f"{name} must hold {allowed}, got {tokens[where].item()} at position {where}; "
            "is the graph's vocabulary that of the tokenizer?"
        )


def _check_clean(x_0: Tensor, graph: str, vocab_size: int) -> None:
    masked = x_0 == vocab_size
    if graph == "absorbing" and bool(masked.any()):
        raise ValueError(
            f"x_0 holds the mask ({vocab_size}) at position {_first(masked)}; clean text has none: "
            "pass the tokens before noise as x_0"
        )
    _check_tokens("x_0", x_0, vocab_size, f"tokens 0 .. {vocab_size - 1}")


def _check_uniforms(u: Tensor) -> None:
    bad = ~((u >= 0) & (u < 1))
    if bool(bad.any()):
        where = _first(bad)
        raise ValueError(f"u must lie in [0, 1), got {u[where].item()} at {where}; use torch.rand")
