"""The inputs of the kernels beside scores or a head, one object per operation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class EntropyBatch(NamedTuple):
    """The tensors of a loss and its graph, as launchers take them; all tensors contiguous.

    Attributes:
        sigma: (B,) noise.
        x_t, x_0: (B, L) int64 noised and clean tokens.
        row_weight: (B, L), the factor of each loss; None: 1.
        scale_by_sigma: scores are raw outputs f of log scores f - ln E - ln V.
    """

    sigma: Tensor
    x_t: Tensor
    x_0: Tensor
    row_weight: Tensor | None
    graph: str
    vocab_size: int
    scale_by_sigma: bool = False

    def tensors(self) -> tuple[Tensor, ...]:
        """sigma, x_t, x_0 and weights; without weights, a pointer that is never read."""
        weight = self.x_t if self.row_weight is None else self.row_weight
        return self.sigma, self.x_t, self.x_0, weight

    def numbers(self) -> tuple[int, int, int]:
        """Length, number of states, and number of tokens."""
        dim = self.vocab_size + (self.graph == "absorbing")
        return self.x_t.shape[1], dim, self.vocab_size

    def options(self) -> dict[str, bool]:
        """The compile-time arguments of the kernels."""
        weighted, absorbing = self.row_weight is not None, self.graph == "absorbing"
        return {"ABSORBING": absorbing, "SCALED": self.scale_by_sigma, "WEIGHTED": weighted}


class ReverseBatch(NamedTuple):
    """The inputs of a reverse step, as launchers take them; all tensors contiguous.

    Attributes:
        x_t: (B, L) int64 noised tokens.
        sigma, dsigma: (B,) noise, and the noise that the step removes.
        u: (B, L, 2) float64 uniforms in [0, 1).
        method: "analytic", "euler" or "denoise".
        scale_by_sigma: scores are raw outputs f of log scores f - ln E - ln V.
        inverse_temperature, top_p: filter of the tokens; their sum of weights is kept.
    """

    x_t: Tensor
    sigma: Tensor
    dsigma: Tensor
    u: Tensor
    graph: str
    vocab_size: int
    method: str
    scale_by_sigma: bool = False
    inverse_temperature: float = 1.0
    top_p: float = 1.0
