"""Checks of values (not of shapes): tokens in range, positive noise, uniforms in [0, 1).

They run inside the operations: on the CPU always, on CUDA only with SEDD_FAST_CHECK=1, because
reading a value back from a GPU waits for it. The C++ kernels make the same tests in their one pass
and call :func:`check` only to word the error.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from sedd_fast.backends.inputs import Entropy, Noising, Reverse, Sums


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of a gradient formed before its upstream factor is known."""
    return torch.float32 if dtype == torch.float16 else dtype


def enabled(device: torch.device) -> bool:
    """Whether values on that device are checked."""
    return device.type == "cpu" or os.environ.get("SEDD_FAST_CHECK", "0") == "1"


def check(inputs: Noising | Entropy | Reverse | Sums) -> None:
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
