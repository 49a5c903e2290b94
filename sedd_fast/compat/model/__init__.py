"""model: the network under the original's name."""

from sedd_fast.compat.model.transformer import SEDD

__all__ = ["SEDD"]
