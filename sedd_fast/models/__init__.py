"""Networks: SEDD's transformer, networks of p(x_0 | x_t), the autoregressive baseline."""

from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.models.posterior import PosteriorModel, posterior_from_score, score_from_posterior
from sedd_fast.models.posterior_sedd import PosteriorSEDD
from sedd_fast.models.sedd import SEDD

__all__ = [
    "SEDD",
    "Autoregressive",
    "ExponentialMovingAverage",
    "PosteriorModel",
    "PosteriorSEDD",
    "SEDDConfig",
    "posterior_from_score",
    "score_from_posterior",
]
