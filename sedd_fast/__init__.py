"""Score Entropy Discrete Diffusion (SEDD), fast: fused operations, training, sampling, bounds.

    import sedd_fast as sf
    graph, noise = sf.Absorbing(50257), sf.LogLinearNoise()
    loss = sf.ScoreEntropyLoss(graph, noise, reduction="mean")(model, x_0)
    tokens = sf.sample(model, graph, noise, shape=(4, 1024), steps=128)

``print(sf.info())`` tells which backend runs and why.
"""

from sedd_fast.backends.registry import use_backend
from sedd_fast.environment import info, reuse_memory
from sedd_fast.evaluate import likelihood_bound
from sedd_fast.losses import (
    ConcreteScoreMatching,
    D3PMLoss,
    DenseScoreEntropyLoss,
    MaskedCrossEntropy,
    posterior_cross_entropy,
)
from sedd_fast.losses.score_entropy import ScoreEntropyLoss
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.cuda_graph import CudaGraphNetwork
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.models.posterior import PosteriorModel, posterior_from_score, score_from_posterior
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD
from sedd_fast.ops import (
    linear_reverse_step,
    linear_score_entropy,
    reverse_probs,
    reverse_step,
    row_sums,
    sample_transition,
    score_entropy,
    score_entropy_with_grad,
    touched_rows,
)
from sedd_fast.process.dense_graph import DenseGraph
from sedd_fast.process.graphs import Absorbing, Graph, Uniform
from sedd_fast.process.noise import GeometricNoise, LogLinearNoise, Noise
from sedd_fast.sampling.api import infill, sample
from sedd_fast.sampling.remask import Remask
from sedd_fast.text.model import TextModel, load
from sedd_fast.training.api import train
from sedd_fast.version import __version__

__all__ = [
    "SEDD",
    "Absorbing",
    "ConcreteScoreMatching",
    "CudaGraphNetwork",
    "D3PMLoss",
    "DenseGraph",
    "DenseScoreEntropyLoss",
    "ExponentialMovingAverage",
    "GeometricNoise",
    "Graph",
    "LogLinearNoise",
    "MaskedCrossEntropy",
    "Noise",
    "PosteriorModel",
    "PosteriorSEDD",
    "Remask",
    "SEDDConfig",
    "ScoreEntropyLoss",
    "TextModel",
    "Uniform",
    "__version__",
    "infill",
    "info",
    "likelihood_bound",
    "linear_reverse_step",
    "linear_score_entropy",
    "load",
    "posterior_cross_entropy",
    "posterior_from_score",
    "reuse_memory",
    "reverse_probs",
    "reverse_step",
    "row_sums",
    "sample",
    "sample_transition",
    "score_entropy",
    "score_entropy_with_grad",
    "score_from_posterior",
    "touched_rows",
    "train",
    "use_backend",
]
