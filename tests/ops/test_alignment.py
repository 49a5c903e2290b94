"""Rows at any alignment: views with an odd offset, padded rows, and their gradients.

Kernels read whole vectors from the first aligned address on. The result must not depend on its
position.
"""

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.op_cases import Backend, make_inputs

#: A few vectors, and several blocks of the size that the interpreter uses.
VOCABULARIES = (21, 1100)


def beginning_at(scores: Tensor, offset: int, padding: int) -> Tensor:
    """The same values in a view: ``offset`` states after an aligned address, with padded rows."""
    batch, length, dim = scores.shape
    row = dim + padding
    storage = torch.full((batch * length * row + offset,), torch.nan).to(scores)
    view = storage.as_strided(scores.shape, (length * row, row, 1), offset)
    return view.copy_(scores)


@pytest.mark.interpreted(offset=[1], padding=[3])  # it has no vectors: its addresses are numbers
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("padding", [0, 3, 8])
@pytest.mark.parametrize("offset", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [sf.Absorbing, sf.Uniform])
def test_the_alignment_of_rows_does_not_change_results(
    backend: Backend, kind, dtype, offset, padding, vocabulary
):
    inputs = make_inputs(kind(vocabulary), shape=(1, 2), dtype=dtype, device=backend.device)
    view = beginning_at(inputs.log_score, offset, padding)
    _, *rest = inputs.entropy()
    aligned = sf.score_entropy_with_grad(*inputs.entropy())
    anywhere = sf.score_entropy_with_grad(view, *rest)
    for a, b in zip(anywhere, aligned, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(
        sf.score_entropy(view, *rest), sf.score_entropy(*inputs.entropy()), rtol=2e-6, atol=1e-6
    )
    _, *rest = inputs.reverse()
    expected = sf.reverse_step(*inputs.reverse(), u=inputs.u)
    assert torch.equal(sf.reverse_step(view, *rest, u=inputs.u), expected)
