"""model.fused_add_dropout_scale: dropout, gate and residual; shift and scale.

The original compiles the ``_fused`` functions with TorchScript. These are plain torch, for
torch.compile to fuse, and set no global flag of TorchScript.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def bias_dropout_add_scale(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    residual: Tensor | None,
    prob: float,
    training: bool,
) -> Tensor:
    """residual + scale * dropout(x + bias); neither bias nor residual is needed."""
    moved = scale * F.dropout(x if bias is None else x + bias, prob, training)
    return moved if residual is None else residual + moved


def get_bias_dropout_add_scale(training: bool) -> Callable[..., Tensor]:
    """:func:`bias_dropout_add_scale` of one mode: ``(x, bias, scale, residual, prob)``."""

    def in_mode(
        x: Tensor, bias: Tensor | None, scale: Tensor, residual: Tensor | None, prob: float
    ) -> Tensor:
        return bias_dropout_add_scale(x, bias, scale, residual, prob, training)

    return in_mode


bias_dropout_add_scale_fused_train = get_bias_dropout_add_scale(training=True)
bias_dropout_add_scale_fused_inference = get_bias_dropout_add_scale(training=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift; all broadcast."""
    return x * (1 + scale) + shift


modulate_fused = modulate
