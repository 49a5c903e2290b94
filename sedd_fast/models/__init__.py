"""Networks: SEDD's transformer, networks of p(x_0 | x_t), the autoregressive baseline."""

from sedd_fast.models.autoregressive import Autoregressive as Autoregressive
from sedd_fast.models.config import SEDDConfig as SEDDConfig
from sedd_fast.models.ema import ExponentialMovingAverage as ExponentialMovingAverage
from sedd_fast.models.posterior import PosteriorModel as PosteriorModel
from sedd_fast.models.posterior import posterior_from_score as posterior_from_score
from sedd_fast.models.posterior import score_from_posterior as score_from_posterior
from sedd_fast.models.posterior_sedd import PosteriorSEDD as PosteriorSEDD
from sedd_fast.models.sedd import SEDD as SEDD
