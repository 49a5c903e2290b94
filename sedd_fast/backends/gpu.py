"""What the GPU backends share: limits of a launch, and its device guard."""

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
