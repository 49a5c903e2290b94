"""model.transformer: ``SEDD(config)`` built from the original's settings."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sedd_fast.models import checkpoint
from sedd_fast.models import sedd as fast
from sedd_fast.models.config import SEDDConfig

_SECTIONS = ("tokens", "graph", "noise", "model")


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
