"""Checks of values (not of shapes): tokens in range, positive noise, uniforms in [0, 1).

The operations make them once, before their backend runs: on the CPU always, on CUDA only with
SEDD_FAST_CHECK=1, because reading a value back synchronises the device. The C++ kernels of the CPU
make the same tests in their one pass; their functions, marked with :func:`checked_by_kernel`, call
:func:`check` only to word the error.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sedd_fast.backends.inputs import NO_MASK, OpInputs, is_token, tokens_in_words
from sedd_fast.backends.tracing import is_traced

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: What to do about an impossible value of an argument.
REMEDIES = {
    **dict.fromkeys(("sigma", "dsigma"), "take it from a noise schedule at t in (0, 1]"),
    **dict.fromkeys(("x_t", "x_0"), "is the graph's vocabulary that of the tokenizer?"),
    "u": "use torch.rand",
}


def enabled(device: torch.device) -> bool:
    """Whether values on that device are checked: not in a trace, which has none."""
    if is_traced():
        return False
    return device.type == "cpu" or os.environ.get("SEDD_FAST_CHECK", "0") == "1"


def checked_by_kernel(function: _Function) -> _Function:
    """Mark a backend's function whose kernel checks the values of its inputs."""
    function.checks_values = True  # type: ignore[attr-defined]
    return function


def check_for(run: Callable[..., Any], inputs: OpInputs) -> None:
    """Check the inputs of a backend's function, unless its kernel does that, row by row."""
    if not getattr(run, "checks_values", False) or inputs.is_empty:
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
        if name == "sigma":
            _refuse(~((value > 0) & value.isfinite()), name, value, "be positive and finite")
        elif name == "dsigma":
            _refuse(~((value >= 0) & value.isfinite()), name, value, "be non-negative and finite")
        elif name == "x_t":
            bad = (value < 0) | (value >= inputs.dim)
            _refuse(bad, name, value, f"hold states 0 .. {inputs.dim - 1}")
        elif name == "x_0":
            _check_clean(value, inputs.vocab_size, inputs.mask_index)
        elif name == "u":
            check_uniforms(value)


def check_uniforms(u: Tensor) -> None:
    """Raise a ValueError for the first uniform outside [0, 1)."""
    if enabled(u.device):
        _refuse(~((u >= 0) & (u < 1)), "u", u, "lie in [0, 1)")


def check_drawable(drawable: Tensor) -> None:
    """Raise a ValueError for the first row from which no token can be drawn.

    Args:
        drawable: (B, L) bool.
    """
    if enabled(drawable.device) and not bool(drawable.all()):
        raise UndrawableError(_first(~drawable))


def check_rows_drawable(drawable: Tensor, rows: Tensor, length: int) -> None:
    """The same for rows (R,) of a head's output, positions b * length + i."""
    if enabled(drawable.device) and not bool(drawable.all()):
        position = divmod(int(rows[_first(~drawable)]), length)
        raise UndrawableError(position, "the head's output")


class UndrawableError(ValueError):
    """No token can be drawn from the row of that index: its weights are all zero or not finite."""

    def __init__(self, position: tuple[int, ...], of: str = "log_score") -> None:
        super().__init__(
            f"{of} at position {position} gives no distribution: every weight is zero, or one is "
            "not finite; look for NaN or infinite scores in the network's output"
        )
        self.position, self.of = position, of


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in bad.nonzero()[0])


def _check_clean(x_0: Tensor, vocab_size: int, mask_index: int) -> None:
    bad = ~is_token(x_0, vocab_size, mask_index)
    if not bool(bad.any()):
        return
    masked = x_0 == mask_index
    if mask_index != NO_MASK and bool(masked.any()):
        raise ValueError(
            f"x_0 holds the mask ({mask_index}) at position {_first(masked)}; clean text has none: "
            "pass the tokens before noise as x_0"
        )
    _refuse(bad, "x_0", x_0, f"hold tokens {tokens_in_words(vocab_size, mask_index)}")


def _refuse(bad: Tensor, name: str, value: Tensor, expected: str) -> None:
    """Raise a ValueError for the first bad value, if there is one."""
    if bool(bad.any()):
        where = _first(bad)
        place = f"for sequence {where[0]}" if bad.dim() == 1 else f"at position {where}"
        found = f"{name} must {expected}, got {value[where].item()} {place}"
        raise ValueError(f"{found}; {REMEDIES[name]}")
