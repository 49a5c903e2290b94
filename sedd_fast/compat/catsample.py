"""catsample: draws from rows of unnormalised probabilities."""

import torch.nn.functional as F
from torch import Tensor

from sedd_fast.backends.categorical import draw
from sedd_fast.ops._uniforms import uniform


def gumbel_softmax(categorical_probs: Tensor, hard: bool = False, eps: float = 1e-9) -> Tensor:
    """A differentiable relaxed draw (torch's own); probabilities below ``eps`` become ``eps``."""
    return F.gumbel_softmax(categorical_probs.clamp(min=eps).log(), hard=hard)


def sample_categorical(categorical_probs: Tensor, method: str = "hard") -> Tensor:
    """One state for each row, by the inverse CDF of a float64 uniform.

    Args:
        categorical_probs: (..., n), not necessarily normalised; a negative entry counts as 0.
        method: "hard", the only one.

    Returns:
        (...) int64. A state of zero weight is never drawn.

    Raises:
        ValueError: another method; on the CPU also a row without positive weight, or with one
            that is not finite.
    """
    if method != "hard":
        raise ValueError(f"method must be 'hard', got {method!r}")
    u = uniform(categorical_probs.shape[:-1], categorical_probs.device)
    return draw(categorical_probs.double().clamp(min=0), u)
