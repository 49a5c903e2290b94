"""SEDD's transformer as a network of p(x_0 | x_t), which a cross entropy can train.

A loss that reads a row of scores only through its posterior s / sum(s), as `MaskedCrossEntropy` and
the absorbing `D3PMLoss` do, does not depend on the row's scale. With such a loss the scale of a
score network drifts, yet every sampler except `hit`, and every bound except "normalised", uses it.
Here the head's output f goes through a softmax, which fixes the scale:

    absorbing, at a mask:  s_y = softmax(f)_y / E          uniform:  s_y = (V/E) softmax(f)_y + c

with E and c as in :mod:`sedd_fast.models.posterior`. The trainer uses it with
`model.kind=posterior`; `model.type` is "posterior" in its config.json.
"""

from typing import ClassVar

from torch import Tensor

from sedd_fast.models import overrides
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.interface import HeadRequest
from sedd_fast.models.posterior import score_from_posterior
from sedd_fast.models.sedd import SEDD
from sedd_fast.names import NetworkKind


class PosteriorSEDD(SEDD):
    """A :class:`sedd_fast.SEDD` whose head gives logits of p(x_0 | x_t); its scores are normalised.

        log_score = model(indices, sigma)      # (B, L) int64, (B,) -> (B, L, dim) fp32

    Objectives, samplers and bounds take it like any network. A freshly initialised network gives
    every token the same probability. A cross entropy reads the head's output at masked positions
    only; for any other objective, and for sampling, log scores are formed.

    Args:
        config: SEDD's; `scale_by_sigma` is not read.

    Example:
        >>> model = PosteriorSEDD(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4))
        >>> loss = MaskedCrossEntropy(model.graph, model.noise, "mean")(model, x_0)
    """

    kind: ClassVar[NetworkKind] = "posterior"
    _requests: ClassVar[tuple[type[HeadRequest], ...]] = (CrossEntropyRequest,)

    def _from_output(self, output: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        return score_from_posterior(output, sigma, indices, self.graph)


overrides.record(PosteriorSEDD, "features", "_log_score", "_from_output")
