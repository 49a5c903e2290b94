"""model.transformer: ``SEDD(config)`` built from the original's settings, and its layers."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from sedd_fast.compat.model import rotary as rotary
from sedd_fast.compat.model.fused_add_dropout_scale import (  # noqa: F401 (the original's names)
    bias_dropout_add_scale_fused_inference,
    bias_dropout_add_scale_fused_train,
    get_bias_dropout_add_scale,
    modulate_fused,
)
from sedd_fast.models import checkpoint, layers
from sedd_fast.models import sedd as fast
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.layers import LayerNorm as LayerNorm

_SECTIONS = ("tokens", "graph", "noise", "model")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift: x (B, L, dim), shift and scale (B, dim)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def residual_linear(x: Tensor, W: Tensor, x_skip: Tensor, residual_scale: float) -> Tensor:
    """x_skip + residual_scale * x @ W.T: (..., in), (out, in), (..., out) -> (..., out)."""
    return x_skip + residual_scale * F.linear(x, W)


class TimestepEmbedder(nn.Module):
    """Noise levels (B,) -> (B, hidden_size): cosines and sines, then a two-layer network.

    ``silu`` is not read, as in the original.
    """

    def __init__(
        self, hidden_size: int, frequency_embedding_size: int = 256, silu: bool = True
    ) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    @staticmethod
    def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
        """(B,) -> (B, dim) float32: cosines, then sines, of dim // 2 frequencies each."""
        half = dim // 2
        place = torch.arange(half, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(max_period) * place / half)
        return F.pad(torch.cat((angle.cos(), angle.sin()), -1), (0, dim % 2))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(self.timestep_embedding(t, self.frequency_embedding_size))


class LabelEmbedder(nn.Module):
    """Class labels (B,) -> (B, cond_size); one label more than ``num_classes``, for none."""

    def __init__(self, num_classes: int, cond_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, cond_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class EmbeddingLayer(layers.EmbeddingLayer):
    """Rows of a (vocab_dim, dim) table."""

    def __init__(self, dim: int, vocab_dim: int) -> None:
        super().__init__(dim, vocab_dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DDiTBlock(layers.DDiTBlock):
    """A block on packed sequences of one length; attention is torch's, not flash-attn's."""

    def __init__(
        self, dim: int, n_heads: int, cond_dim: int, mlp_ratio: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(_config(dim, cond_dim, n_heads, mlp_ratio=mlp_ratio, dropout=dropout))

    def forward(  # type: ignore[override]
        self, x: Tensor, rotary_cos_sin: tuple[Tensor, Tensor], c: Tensor, seqlens: None = None
    ) -> Tensor:
        """x (B, L, dim), the tables of :class:`rotary.Rotary`, c (B, cond_dim) -> (B, L, dim).

        Raises NotImplementedError for ``seqlens``, which the original's network never passes.
        """
        if seqlens is not None:
            raise NotImplementedError(
                "seqlens is not supported; leave it None and pad the sequences to one length"
            )
        # The tables hold every angle twice, for queries, keys and values: (1, L, 3, 1, head_dim).
        cos, sin = (t[0, :, 0, :, : t.shape[-1] // 2] for t in rotary_cos_sin)
        return super().forward(x, c, (cos, sin))

    def _get_bias_dropout_scale(self) -> Callable[..., Tensor]:
        return get_bias_dropout_add_scale(self.training)


class DDitFinalLayer(layers.DDitFinalLayer):
    """Modulated norm, then the head: (B, L, hidden_size), (B, cond_dim) -> (B, L, out_channels)."""

    def __init__(self, hidden_size: int, out_channels: int, cond_dim: int) -> None:
        super().__init__(_config(hidden_size, cond_dim), out_channels)


class SEDD(nn.Module):
    """:class:`sedd_fast.SEDD` with the original's constructor, ``config`` and parameter names.

    Args:
        config: the original's settings, as OmegaConf or a dict, flat or nested under "config".
            The sections tokens, graph, noise and model are read.

    ``config`` stays as it is given (a dict becomes OmegaConf), so that
    ``graph_lib.get_graph(model.config, device)`` and ``model.config.model.length`` work. On CUDA
    the network runs in bf16 autocast, as in the original; log scores are fp32 everywhere.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = _as_omegaconf(config)
        fields = checkpoint.config_from_original(_plain(self.config))
        network = fast.SEDD(SEDDConfig(**fields))
        # The parts are registered here, under the names that checkpoints use. The network that
        # runs them is not registered: every parameter would have a second name.
        for name, part in network.named_children():
            self.add_module(name, part)
        object.__setattr__(self, "network", network)
        self.absorb = network.config.graph == "absorbing"
        self.scale_by_sigma = network.config.scale_by_sigma

    network: fast.SEDD

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        """Log scores (B, L, dim), fp32 and 0 at ``indices`` (B, L); sigma is (B,)."""
        on_cuda = indices.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if on_cuda else nullcontext():
            return self.network(indices, sigma)

    def _get_bias_dropout_scale(self) -> Callable[..., Tensor]:
        return get_bias_dropout_add_scale(self.training)

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path, **hub: Any) -> "SEDD":
        """A trained network in evaluation mode; see :meth:`sedd_fast.SEDD.from_pretrained`."""
        saved = checkpoint.read(name_or_dir, **hub)
        return checkpoint.build(saved, lambda c: cls(checkpoint.config_to_original(c))).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors."""
        self.network.save_pretrained(directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what :meth:`save_pretrained` writes; see :meth:`sedd_fast.SEDD.push_to_hub`."""
        return self.network.push_to_hub(repo_id, **options)


def _config(hidden_size: int, cond_dim: int, n_heads: int = 1, **settings: float) -> SEDDConfig:
    sizes = {"hidden_size": hidden_size, "cond_dim": cond_dim, "n_heads": n_heads}
    return SEDDConfig(vocab_size=2, **sizes, **settings)  # type: ignore[arg-type]


def _as_omegaconf(config: Any) -> Any:
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be the original's settings as OmegaConf or a dict, got "
            f"{type(config).__name__}; for SEDDConfig use sedd_fast.SEDD"
        )
    config = config.get("config", config)
    return config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))


def _plain(config: Any) -> dict[str, Any]:
    """The sections that the network reads; others may hold values that only hydra can resolve."""
    parts = {key: config[key] for key in _SECTIONS if key in config}
    return {
        key: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
        for key, part in parts.items()
    }
