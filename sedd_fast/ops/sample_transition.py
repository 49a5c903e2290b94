"""sample_transition: noise clean tokens, x_t ~ p(. | x_0)."""

import torch
from torch import Tensor

from sedd_fast.backends import registry, values
from sedd_fast.backends.inputs import NoisingInputs
from sedd_fast.ops import _arguments as arguments
from sedd_fast.ops._operator import operator
from sedd_fast.ops._uniforms import uniforms


@operator("sample_transition")
def sample_transition_op(noising: NoisingInputs) -> Tensor:
    run = registry.function("sample_transition", noising.x_0, noising.graph)
    values.check_for(run, noising)
    return run(noising)


sample_transition_op.register_fake(lambda noising: noising.x_0.new_empty(noising.x_0.shape))


def sample_transition(
    x_0: Tensor,
    sigma: Tensor | float,
    graph: arguments.GraphLike,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    """Noise clean tokens: each falls independently with probability 1 - exp(-sigma).

    A token that falls becomes the mask (absorbing) or a token chosen uniformly from all V
    (uniform; it may draw itself again).

    Args:
        x_0: (B, L) int64, clean tokens: states other than the mask.
        sigma: total noise, a number, (B,) or (B, 1); positive.
        graph: ``Absorbing(V)`` or ``Uniform(V)``.
        generator: source of the uniforms; torch's default one if None.
        u: (B, L, 2) float64 in [0, 1) instead of a draw.

    Returns:
        x_t: (B, L) int64.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or value; the message says which.

    Source: Lou, Meng, Ermon 2024, equations 15-16.
    """
    arguments.check_graph(graph)
    arguments.check_tokens("x_0", x_0)
    sigma = arguments.per_sequence("sigma", sigma, x_0)
    drawn = uniforms(x_0, u, generator)
    return sample_transition_op(NoisingInputs(x_0, sigma, drawn, *arguments.process(graph)))
