"""The original SEDD code as one more contender: imported from a checkout and run as it is.

Its ``graph_lib`` (loss, transition, staggered score) and ``catsample`` (draws) need only torch and
numpy and run anywhere. Its network needs flash_attn and a CUDA device; ``sampling`` and ``losses``
import that network. So this module repeats the few lines with which its predictors call
``graph_lib``.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sedd_fast import Graph


@contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Put the checkout first on the module path, for the time of the import only."""
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


class Original:
    """The original's graphs behind functions with our arguments.

    Args:
        path: a checkout, the directory that holds graph_lib.py.

    Raises:
        FileNotFoundError: no graph_lib.py there.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser().resolve()
        if not (path / "graph_lib.py").is_file():
            raise FileNotFoundError(
                f"--reference {path} holds no graph_lib.py; give a checkout of the original code"
            )
        with _importable(path):
            self._graph_lib: ModuleType = importlib.import_module("graph_lib")
            self._draw = importlib.import_module("catsample").sample_categorical

    def _graph(self, graph: Graph) -> Any:
        name = "Absorbing" if graph.kind == "absorbing" else "Uniform"
        return getattr(self._graph_lib, name)(graph.vocab_size)

    def score_entropy(
        self, graph: Graph, log_score: Tensor, sigma: Tensor, x_t: Tensor, x_0: Tensor
    ) -> Tensor:
        """The loss (B, L) at noise sigma (B, 1)."""
        return self._graph(graph).score_entropy(log_score, sigma, x_t, x_0)

    def sample_transition(self, graph: Graph, x_0: Tensor, sigma: Tensor) -> Tensor:
        """x_t (B, L) at noise sigma (B, 1)."""
        return self._graph(graph).sample_transition(x_0, sigma)

    def reverse_step(
        self, graph: Graph, log_score: Tensor, x_t: Tensor, dsigma: Tensor, method: str
    ) -> Tensor:
        """x_s (B, L) for dsigma (B, 1); "denoise" excludes the mask, as the original does."""
        theirs, score = self._graph(graph), log_score.exp()
        if method == "euler":
            return theirs.sample_rate(x_t, dsigma[..., None] * theirs.reverse_rate(x_t, score))
        weights = theirs.staggered_score(score, dsigma) * theirs.transp_transition(x_t, dsigma)
        if method == "denoise" and theirs.absorb:
            weights = weights[..., :-1]
        return self._draw(weights)


def why_no_network(device: torch.device) -> str | None:
    """Why the original's network cannot run here, or None."""
    if device.type != "cuda":
        return f"it needs flash_attn and a CUDA device, and this run is on {device.type}"
    if importlib.util.find_spec("flash_attn") is None:
        return "it needs flash_attn, which is not installed"
    return None
