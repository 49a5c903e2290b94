"""Layers of the transformers: embeddings, rotary positions, blocks modulated by the noise level.

`SEDD` and the autoregressive baseline share them. The blocks are those of Peebles and Xie 2023
(arXiv 2212.09748, "adaLN-Zero"); names of parameters are those of the published checkpoints.
"""

import math
import typing
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sedd_fast.backends.dtypes import at_least_fp32
from sedd_fast.models import overrides
from sedd_fast.models.config import SEDDConfig

#: Queries, keys, values (B, heads, L, d) -> (B, heads, L, d).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)  # x * (1 + scale) + shift, in one pass


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias; statistics in fp32 whatever comes in."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        gain = at_least_fp32(self.weight)
        return F.layer_norm(at_least_fp32(x), gain.shape, gain).to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), halves paired as in GPT-NeoX.

    cos and sin are made anew at every call, so any length works and nothing is cached that a
    compiled or exported graph would freeze; they cost L * head_dim numbers for the whole network.
    """

    inv_freq: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        # On the CPU: arithmetic on the meta device imports torch's compiler, which takes a second.
        exponent = torch.arange(0, dim, 2, device="cpu").float() / dim
        inv_freq = (1.0 / base**exponent).to(torch.get_default_device())
        self.register_buffer("inv_freq", inv_freq)  # in published state dicts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        # model.half() or .bfloat16() would round the frequencies: wrong by radians at position 1000
        kept = self.inv_freq
        super()._apply(fn, recurse)
        if not kept.is_meta:
            self.inv_freq = kept.to(self.inv_freq.device)
        return self

    def forward(self, position: int | Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, (..., L, 1, head_dim / 2), of positions (..., L), or 0 .. position - 1."""
        if isinstance(position, int):
            position = torch.arange(position, device=self.inv_freq.device)
        # A broadcast product: autocast would run einsum or matmul in half precision.
        angle = position[..., None].to(self.inv_freq.dtype) * self.inv_freq  # (L, head_dim / 2)
        return angle.cos()[..., None, :], angle.sin()[..., None, :]


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) of x (B, L, heads, d) by the angle of its position."""
    cos, sin = (table.to(x.dtype) for table in rotary)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class TimestepEmbedder(nn.Module):
    """sigma (B,) -> (B, cond_dim): 128 cosines and 128 sines of it, then a two-layer network."""

    def __init__(self, cond_dim: int, n_waves: int = 128) -> None:
        super().__init__()
        self.n_waves = n_waves
        self.mlp = nn.Sequential(
            nn.Linear(2 * n_waves, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )

    def forward(self, sigma: Tensor) -> Tensor:
        step = torch.arange(self.n_waves, device=sigma.device, dtype=torch.float32) / self.n_waves
        angle = sigma.float()[:, None] * torch.exp(-math.log(10_000.0) * step)
        wave = torch.cat((angle.cos(), angle.sin()), dim=-1)  # (B, 2 * n_waves)
        # bf16 cannot tell neighbouring noise levels apart; the matrices here are tiny.
        kind = sigma.device.type  # "meta" has no autocast
        with torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext():
            return self.mlp(wave.to(self._dtype()))

    def _dtype(self) -> torch.dtype:
        """That of the network's weights; float32 where quantisation has left none."""
        for p in self.mlp.parameters():
            if p.is_floating_point():
                return p.dtype
        return torch.float32


class EmbeddingLayer(nn.Module):
    """Rows of a (dim, hidden_size) table."""

    def __init__(self, hidden_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(dim, hidden_size))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.embedding)


class DDiTBlock(nn.Module):
    """Attention and MLP, each with shift, scale and gate computed from the noise embedding c."""

    def __init__(self, config: SEDDConfig) -> None:
        super().__init__()
        dim, inner = config.hidden_size, config.mlp_ratio * config.hidden_size
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.norm1 = LayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, dim)
        )
        self.adaLN_modulation = _zero_linear(config.cond_dim, 6 * dim)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: Attend = F.scaled_dot_product_attention,  # no mask: every position attends to all
    ) -> Tensor:
        modulation = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)  # six of (B, 1, hidden)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        out = self._attention(_modulate(self.norm1(x), shift_a, scale_a), rotary, attend)
        x = self._add(x, gate_a, out)
        out = self.mlp(_modulate(self.norm2(x), shift_m, scale_m))
        return self._add(x, gate_m, out)

    def _attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        qkv = self.attn_qkv(x).unflatten(-1, (3, self.n_heads, -1))  # (B, L, 3, heads, d)
        q, k, v = qkv.unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (_rotate(q, rotary), _rotate(k, rotary), v))
        out = attend(q, k, v)  # (B, heads, L, d)
        return self.attn_out(out.transpose(1, 2).flatten(2))

    def _add(self, x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        return torch.addcmul(x, gate, F.dropout(out, self.dropout, self.training))


class DDitFinalLayer(nn.Module):
    """Modulated norm, then the head: hidden (B, L, hidden) -> raw output f (B, L, dim)."""

    def __init__(self, config: SEDDConfig, dim: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden_size)
        self.linear = _zero_linear(config.hidden_size, dim)
        self.adaLN_modulation = _zero_linear(config.cond_dim, 2 * config.hidden_size)

    def features(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        return _modulate(self.norm_final(x), shift, scale)

    def project(self, features: Tensor) -> Tensor:
        """The head on its features: (B, L, hidden) -> (B, L, dim)."""
        # The result may be written to. A view would make autograd copy its gradient, and a linear
        # layer returns a view for three dimensions.
        out = self.linear(features.flatten(0, 1))
        return torch.ops.aten._unsafe_view(out, [*features.shape[:2], out.shape[-1]])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.project(self.features(x, c))


overrides.record(DDitFinalLayer, "forward", "features", "project")


def plain_linear(layer: nn.Module) -> nn.Linear | None:
    """The linear layer of a `DDitFinalLayer`, if a call of that applies it to the features.

    None for any other layer, and where hooks, adapters or replaced parts do more, or other things.
    """
    if not overrides.is_plain(layer, DDitFinalLayer):
        return None
    linear = typing.cast(nn.Linear, layer.linear)
    return linear if overrides.is_plain(linear, nn.Linear) else None


def may_be_called_by_parts(layer: nn.Module) -> bool:
    """Whether `features`, then `project` of an output layer do all that a call of it does.

    Global hooks, which profilers register, are not asked about.
    """
    own = isinstance(layer, DDitFinalLayer) and overrides.has_own_methods(layer, "forward")
    return own and not overrides.has_hooks(layer)


def _zero_linear(n_in: int, n_out: int) -> nn.Linear:
    linear = nn.Linear(n_in, n_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
