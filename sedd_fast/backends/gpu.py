"""What the GPU backends share: the device guard of a launch, and the words of one that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


def on(tensor: Tensor) -> torch.cuda.device:
    """The device guard of a launch; on the CPU (Triton's interpreter) it does nothing."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


@contextlib.contextmanager
def launching(op: str, tensor: Tensor, *errors: type[Exception]) -> Iterator[None]:
    """The device guard of a launch whose failure names the operation.

    Args:
        errors: what a failed launch may raise besides RuntimeError.

    Raises:
        RuntimeError: the launch failed; torch.OutOfMemoryError passes through.
    """
    failures: tuple[type[Exception], ...] = (RuntimeError, *errors)
    try:
        with on(tensor):
            yield
    except torch.OutOfMemoryError:
        raise
    except failures as error:
        raise RuntimeError(f"{op} on {tensor.device} could not be launched: {error}") from error
