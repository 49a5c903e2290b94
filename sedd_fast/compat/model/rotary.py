"""model.rotary: rotary positions for queries, keys and values packed in one tensor."""

import torch
from torch import Tensor

from sedd_fast.models import layers


class Rotary(layers.Rotary):
    """cos and sin of every position for packed (B, L, 3, heads, dim) tensors; none is cached."""

    def forward(self, x: Tensor, seq_dim: int = 1) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Two (1, L, 3, 1, dim) tables, L the size of x in ``seq_dim``; values are not turned."""
        cos, sin = (t.repeat(1, 1, 2)[None, :, None] for t in super().forward(x.shape[seq_dim]))
        return (
            torch.cat((cos, cos, torch.ones_like(cos)), 2),
            torch.cat((sin, sin, torch.zeros_like(sin)), 2),
        )


def rotate_half(x: Tensor) -> Tensor:
    """(-second half, first half) of the last dimension."""
    first, second = x.tensor_split((x.shape[-1] // 2,), -1)
    return torch.cat((-second, first), -1)


def apply_rotary_pos_emb(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn packed (B, L, 3, heads, dim) queries and keys by the tables of :class:`Rotary`."""
    return torch.addcmul(qkv * cos, rotate_half(qkv), sin)


_apply_rotary_pos_emb_torchscript = apply_rotary_pos_emb
