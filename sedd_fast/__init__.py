"""Score Entropy Discrete Diffusion (SEDD), fast: fused operations, training, sampling, bounds.

    import sedd_fast as sf
    graph, noise = sf.Absorbing(50257), sf.LogLinearNoise()
    loss = sf.ScoreEntropyLoss(graph, noise, reduction="mean")(model, x_0)
    tokens = sf.sample(model, graph, noise, shape=(4, 1024), steps=128)

``print(sf.info())`` tells which backend runs and why.

A name is imported from its module when it is first used (PEP 562), so that `sedd-fast --help` need
not import torch. The imports below are for type checkers and editors, and the table beside them for
Python; a test compares the two.
"""

import importlib
import pkgutil
import threading
from typing import TYPE_CHECKING, Any

from sedd_fast.version import __version__ as __version__

if TYPE_CHECKING:
    from sedd_fast.backends.registry import use_backend as use_backend
    from sedd_fast.environment import info as info
    from sedd_fast.environment import reuse_memory as reuse_memory
    from sedd_fast.evaluate import likelihood_bound as likelihood_bound
    from sedd_fast.losses import ConcreteScoreMatching as ConcreteScoreMatching
    from sedd_fast.losses import D3PMLoss as D3PMLoss
    from sedd_fast.losses import DenseScoreEntropyLoss as DenseScoreEntropyLoss
    from sedd_fast.losses import MaskedCrossEntropy as MaskedCrossEntropy
    from sedd_fast.losses import posterior_cross_entropy as posterior_cross_entropy
    from sedd_fast.losses.score_entropy import ScoreEntropyLoss as ScoreEntropyLoss
    from sedd_fast.models.config import SEDDConfig as SEDDConfig
    from sedd_fast.models.cuda_graph import CudaGraphNetwork as CudaGraphNetwork
    from sedd_fast.models.ema import ExponentialMovingAverage as ExponentialMovingAverage
    from sedd_fast.models.interface import ScoreModel as ScoreModel
    from sedd_fast.models.posterior import PosteriorModel as PosteriorModel
    from sedd_fast.models.posterior import posterior_from_score as posterior_from_score
    from sedd_fast.models.posterior import score_from_posterior as score_from_posterior
    from sedd_fast.models.posterior_sedd import PosteriorSEDD as PosteriorSEDD
    from sedd_fast.models.sedd import SEDD as SEDD
    from sedd_fast.ops import linear_cross_entropy as linear_cross_entropy
    from sedd_fast.ops import linear_denoise as linear_denoise
    from sedd_fast.ops import linear_reverse_step as linear_reverse_step
    from sedd_fast.ops import linear_score_entropy as linear_score_entropy
    from sedd_fast.ops import reverse_probs as reverse_probs
    from sedd_fast.ops import reverse_step as reverse_step
    from sedd_fast.ops import row_sums as row_sums
    from sedd_fast.ops import sample_transition as sample_transition
    from sedd_fast.ops import score_entropy as score_entropy
    from sedd_fast.ops import score_entropy_with_grad as score_entropy_with_grad
    from sedd_fast.ops import touched_rows as touched_rows
    from sedd_fast.process.dense_graph import DenseGraph as DenseGraph
    from sedd_fast.process.graphs import Absorbing as Absorbing
    from sedd_fast.process.graphs import Graph as Graph
    from sedd_fast.process.graphs import Uniform as Uniform
    from sedd_fast.process.noise import GeometricNoise as GeometricNoise
    from sedd_fast.process.noise import LogLinearNoise as LogLinearNoise
    from sedd_fast.process.noise import Noise as Noise
    from sedd_fast.sampling.api import infill as infill
    from sedd_fast.sampling.api import sample as sample
    from sedd_fast.sampling.remask import Remask as Remask
    from sedd_fast.text.model import TextModel as TextModel
    from sedd_fast.text.model import load as load
    from sedd_fast.training.api import train as train
else:
    _TABLE = {
        "backends.registry": "use_backend",
        "environment": "info reuse_memory",
        "evaluate": "likelihood_bound",
        "losses": "ConcreteScoreMatching D3PMLoss DenseScoreEntropyLoss MaskedCrossEntropy "
        "posterior_cross_entropy",
        "losses.score_entropy": "ScoreEntropyLoss",
        "models.config": "SEDDConfig",
        "models.cuda_graph": "CudaGraphNetwork",
        "models.ema": "ExponentialMovingAverage",
        "models.interface": "ScoreModel",
        "models.posterior": "PosteriorModel posterior_from_score score_from_posterior",
        "models.posterior_sedd": "PosteriorSEDD",
        "models.sedd": "SEDD",
        "ops": "linear_cross_entropy linear_denoise linear_reverse_step linear_score_entropy "
        "reverse_probs reverse_step row_sums sample_transition score_entropy "
        "score_entropy_with_grad touched_rows",
        "process.dense_graph": "DenseGraph",
        "process.graphs": "Absorbing Graph Uniform",
        "process.noise": "GeometricNoise LogLinearNoise Noise",
        "sampling.api": "infill sample",
        "sampling.remask": "Remask",
        "text.model": "TextModel load",
        "training.api": "train",
    }
    _MODULES = {name: f"{__name__}.{at}" for at, names in _TABLE.items() for name in names.split()}
    __all__ = sorted([*_MODULES, "__version__"])
    # Threads that import modules which import each other may find one of them half made.
    _importing = threading.RLock()

    def __getattr__(name: str) -> Any:
        submodule = f"{__name__}.{name}"
        with _importing:
            if name in _MODULES:
                value = getattr(importlib.import_module(_MODULES[name]), name)
                globals()[name] = value
                return value
            try:
                if not name.startswith("__") and "." not in name:
                    return importlib.import_module(submodule)
            except ModuleNotFoundError as missing:
                if missing.name != submodule:
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        submodules = (each.name for each in pkgutil.iter_modules(__path__))
        public = (name for name in submodules if not name.startswith("_"))
        return sorted({*globals(), *__all__, *public})
