"""The kinds of network by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sedd_fast.models import checkpoint
from sedd_fast.models.autoregressive import KIND as AUTOREGRESSIVE
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD

AnyNetwork = SEDD | Autoregressive


def load(name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any) -> AnyNetwork:
    """A trained network of the kind its settings name, in evaluation mode.

    Errors and options as `SEDD.from_pretrained`.
    """
    saved = checkpoint.read(name_or_dir, None, **hub)
    kinds: dict[str, type[AnyNetwork]] = {
        SEDD.kind: SEDD,
        PosteriorSEDD.kind: PosteriorSEDD,
        AUTOREGRESSIVE: Autoregressive,
    }
    model = kinds[saved.kind](SEDDConfig(**saved.config))
    checkpoint.restore(model, saved)
    return model.to(device).eval()
