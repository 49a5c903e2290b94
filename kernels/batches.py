"""What launchers pass to kernels of the inputs of a loss.

``launch`` functions take the inputs of an operation as one object with named attributes, those of
``sedd_fast.backends.inputs``; this package does not import it. All tensors are contiguous:

    graph, vocab_size  "absorbing" or "uniform", and its number of tokens
    mask_index         the state that is no token, or -1
    sigma, dsigma      (B,) noise, and the noise that a step removes
    x_t, x_0           (B, L) int64 noised and clean tokens
    row_weight         (B, L), the factor of each loss; None: 1
    u                  (B, L, 2) float64 uniforms in [0, 1)
    scale_by_sigma     scores are raw outputs f of log scores f - ln E - ln V
"""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """Pointers to the inputs of a loss."""

    sigma: Any
    x_t: Any
    x_0: Any
    row_weight: Any


class Options(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        absorbing: graph; else uniform.
        scaled: scores are raw outputs f of log scores f - ln E - ln V.
        weighted: whether ``row_weight`` is given.
    """

    absorbing: bool
    scaled: bool
    weighted: bool


def tensors(entropy: Any) -> Batch:
    """sigma, x_t, x_0 and weights; without weights, a pointer that is never read."""
    weight = entropy.x_t if entropy.row_weight is None else entropy.row_weight
    return Batch(entropy.sigma, entropy.x_t, entropy.x_0, weight)


def numbers(entropy: Any) -> tuple[int, int, int, int]:
    """Length, number of states, number of tokens, and the mask."""
    return entropy.x_t.shape[1], entropy.dim, entropy.vocab_size, entropy.mask_index


def options(entropy: Any) -> Options:
    """The compile-time arguments of the kernels."""
    weighted, absorbing = entropy.row_weight is not None, entropy.graph == "absorbing"
    return Options(absorbing, entropy.scale_by_sigma, weighted)
