"""What the GPU backends share: limits of a launch, its device guard, and its errors."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor

#: Programs or blocks of one launch: a position each.
MOST_POSITIONS = 2**31 - 1
#: Kernels number states, and a block past the last, in 32 bits.
MOST_STATES = 2**30


def too_large(op: str, like: Tensor, most_states: int = MOST_STATES, why: str = "") -> str | None:
    """Why one launch cannot hold log scores (B, L, dim) of that size, or None.

    Args:
        most_states: the kernel's own limit; ``why`` it has one.
    """
    states = like.shape[-1]
    if states > most_states:
        why = why or "it numbers them in 32 bits"
        return f"its {op} takes at most {most_states:,} states ({why}), got {states:,}"
    if (positions := like.numel() // max(states, 1)) > MOST_POSITIONS:
        return (
            f"its {op} takes at most {MOST_POSITIONS:,} positions in a call, got {positions:,}; "
            "split the batch"
        )
    return None


def on(tensor: Tensor) -> torch.cuda.device:
    """The device guard of a launch; on the CPU (Triton's interpreter) it does nothing."""
    return torch.cuda.device(tensor.get_device())  # by number: a torch.device is looked up, slowly


class launching:  # noqa: N801
    """The device guard of a launch whose failure names the operation; use it with ``with``.

    Args:
        errors: what a failed launch may raise besides RuntimeError.

    Raises:
        RuntimeError: the launch failed; torch.OutOfMemoryError passes through.
    """

    def __init__(self, op: str, tensor: Tensor, *errors: type[Exception]) -> None:
        self._op, self._tensor, self._guard = op, tensor, on(tensor)
        self._failures: tuple[type[Exception], ...] = (RuntimeError, *errors)

    def __enter__(self) -> None:
        self._guard.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guard.__exit__(kind, error, trace)
        if isinstance(error, self._failures) and not isinstance(error, torch.OutOfMemoryError):
            where = f"{self._op} on {self._tensor.device}"
            raise RuntimeError(f"{where} could not be launched: {error}") from error
