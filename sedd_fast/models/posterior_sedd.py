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

from torch import Tensor, nn

from sedd_fast.models import overrides
from sedd_fast.models.cross_entropy import CrossEntropyRequest
from sedd_fast.models.denoise_request import DenoiseRequest
from sedd_fast.models.interface import HeadRequest
from sedd_fast.models.linear_head import LinearHead
from sedd_fast.models.posterior import score_from_posterior
from sedd_fast.models.sedd import SEDD
from sedd_fast.names import NetworkKind


class PosteriorSEDD(SEDD):
    """A :class:`sedd_fast.SEDD` whose head gives logits of p(x_0 | x_t); its scores are normalised.

        log_score = model(indices, sigma)      # (B, L) int64, (B,) -> (B, L, dim) fp32

    Objectives, samplers and bounds take it like any network. A freshly initialised network gives
    every token the same probability. With the absorbing graph score entropy, cross entropy and
    reverse steps are computed from hidden states (:mod:`sedd_fast.models.linear_head`), a step at
    the positions that it unmasks alone. Log scores are formed for the uniform graph, for concrete
    score matching and for the samplers "tau_leaping" and "theta_trapezoidal".

    Args:
        config: SEDD's; `scale_by_sigma` is not read.

    Example:
        >>> model = PosteriorSEDD(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4))
        >>> loss = MaskedCrossEntropy(model.graph, model.noise, "mean")(model, x_0)
    """

    kind: ClassVar[NetworkKind] = "posterior"

    def _answers(self) -> tuple[type[HeadRequest], ...]:
        if self.graph.mask_index is None:
            return CrossEntropyRequest, DenoiseRequest
        return super()._answers()

    def _linear_head(self, linear: nn.Linear) -> LinearHead:
        return super()._linear_head(linear)._replace(scale_by_sigma=False, normalised=True)

    def _from_output(self, output: Tensor, indices: Tensor, sigma: Tensor) -> Tensor:
        return score_from_posterior(output, sigma, indices, self.graph)


overrides.record(PosteriorSEDD, "features", "_log_score", "_from_output")
