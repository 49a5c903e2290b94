"""SEDD's transformer as a network of p(x_0 | x_t): what a cross entropy can train.

A loss that reads a row of scores only through its posterior s / sum(s), as `MaskedCrossEntropy` and
the absorbing `D3PMLoss` do, does not see the row's scale. Trained so, a score network's scale
drifts wherever the optimiser takes it, while every sampler but `hit`, and every bound but
"normalised", reads it. Here the head's output f goes through a softmax, and the scale follows:

    absorbing, at a mask:  s_y = softmax(f)_y / E          uniform:  s_y = (V/E) softmax(f)_y + c

with E and c as in :mod:`sedd_fast.models.posterior`. The trainer makes one with
`model.kind=posterior`; it is saved in SEDD's format with `model.type` "posterior".
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sedd_fast.models.posterior import score_from_posterior
from sedd_fast.models.sedd import SEDD


class PosteriorSEDD(SEDD):
    """A :class:`sedd_fast.SEDD` whose head gives logits of p(x_0 | x_t); its scores are normalised.

        log_score = model(indices, sigma)      # (B, L) int64, (B,) -> (B, L, dim) fp32

    Goes wherever a network goes: objectives, samplers, bounds. A fresh network gives every token
    the same probability. Log scores are formed in full: the fused head takes its gradient in one
    pass over the vocabulary, and a softmax needs the sum of a row first.

    Args:
        config: SEDD's; `scale_by_sigma` is not read.

    Example:
        >>> model = PosteriorSEDD(SEDDConfig(vocab_size=96, hidden_size=256, n_blocks=6, n_heads=4))
        >>> loss = MaskedCrossEntropy(model.graph, model.noise, "mean")(model, x_0)
    """

    kind: ClassVar[str] = "posterior"

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:  # type: ignore[override]
        """(B, L) int64, (B,) -> (B, L, dim) log scores, 0 at `indices`; errors as SEDD's."""
        logits = self.output_layer.linear(self.features(indices, sigma))  # (B, L, dim)
        return score_from_posterior(logits, sigma, indices, self.graph)
