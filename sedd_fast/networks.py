"""Either kind of network, by name: SEDD, or the autoregressive baseline of equal size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sedd_fast import checkpoint
from sedd_fast.autoregressive import Autoregressive, NextTokenLoss
from sedd_fast.losses import ScoreEntropyLoss
from sedd_fast.model import SEDD, SEDDConfig

if TYPE_CHECKING:
    from sedd_fast.settings import TrainConfig

AnyNetwork = SEDD | Autoregressive
AnyObjective = ScoreEntropyLoss | NextTokenLoss


def new_network(config: TrainConfig, vocab_size: int) -> tuple[AnyNetwork, AnyObjective]:
    """The network that `model.kind` names, freshly initialised, and what it is trained on."""
    settings = config.model_config(vocab_size)
    if config.model.kind == "ar":
        return Autoregressive(settings), NextTokenLoss()
    model = SEDD(settings)
    return model, ScoreEntropyLoss(model.graph, model.noise)


def load(name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any) -> AnyNetwork:
    """A trained network of the kind its settings name, in evaluation mode.

    Errors and options as `SEDD.from_pretrained`.
    """
    saved = checkpoint.read(name_or_dir, None, **hub)
    kinds: dict[str, type[AnyNetwork]] = {"sedd": SEDD, "ar": Autoregressive}
    model = kinds[saved.kind](SEDDConfig(**saved.config))
    checkpoint.restore(model, saved)
    return model.to(device).eval()
