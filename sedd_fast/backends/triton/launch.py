"""What launches of Triton kernels share: memory for results, the device guard, errors, limits."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sedd_fast.backends.gpu import MOST_POSITIONS, on, too_large

#: What runs one program a position.
ROW_OPS = ("score_entropy", "score_entropy_with_grad", "reverse_step", "row_sums")
#: The most states of reverse_step, whose programs keep the sums of a row's blocks in registers. At
#: this size they spill a little (sm_90); for four times as many, compiling takes 10 to 30 seconds.
MOST_STATES_OF_A_STEP = 2**20


def unsupported(op: str, like: Tensor) -> str | None:
    """Why the operation cannot run on log scores, or tokens to be noised, of that size, or None."""
    if op == "sample_transition" and like.numel() > MOST_POSITIONS:
        return _too_many_programs(like)
    if op not in ROW_OPS:
        return None
    if op != "reverse_step":
        return too_large(op, like)
    return too_large(op, like, MOST_STATES_OF_A_STEP, "it keeps their sums in registers")


def _too_many_programs(x_0: Tensor) -> str | None:
    from sedd_fast.kernels.sample_transition import programs

    if (number := programs(*x_0.shape)) <= MOST_POSITIONS:
        return None
    return (
        f"its sample_transition takes at most {MOST_POSITIONS:,} programs in a call, got "
        f"{number:,}; split the batch"
    )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of that shape and device."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def launched(op: str, like: Tensor, launch: Callable[..., Any], *args: Any) -> Any:
    """What ``launch(*args)`` returns, on the device of a tensor.

    Raises:
        RuntimeError: a launch failed; the message names the operation. torch.OutOfMemoryError
            passes through.
    """
    import triton

    try:
        with on(like):
            return launch(*args)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, triton.TritonError) as error:
        raise RuntimeError(f"{op} on {like.device} could not be launched: {error}") from error
