"""What the GPU backends share: the device guard of a launch, and the words of one that failed."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor


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
