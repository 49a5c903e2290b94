"""Loading a network of any kind by the kind that its settings name."""

from pathlib import Path
from typing import Any

import torch

from sedd_fast.models import checkpoint
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.hugging_face import MaskedLanguageModel
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD

#: The model that comes with the package; its README says what it is.
BUNDLED = Path(__file__).parent.parent / "text" / "python_help"

#: The networks that this package trains and writes, and those that it runs.
OwnNetwork = SEDD | Autoregressive
AnyNetwork = OwnNetwork | MaskedLanguageModel
KINDS: dict[str, type[OwnNetwork]] = {c.kind: c for c in (SEDD, PosteriorSEDD, Autoregressive)}


def load(name_or_dir: str | Path, *, device: torch.device | str = "cpu", **hub: Any) -> OwnNetwork:
    """A trained network of this package in evaluation mode, of the kind that its settings name.

    Errors and options are those of `SEDD.from_pretrained`.
    """
    saved = checkpoint.read(name_or_dir, None, **hub)
    return KINDS[saved.kind].from_checkpoint(saved, device)
