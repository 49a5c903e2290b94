"""A draw from whole rows of a head's output, a few of them at a time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sedd_fast.backends import reference, row_blocks, values
from sedd_fast.backends.head import Linear
from sedd_fast.backends.softmax import DenoiseInputs

STATES, WIDTH = 150, 8


def make(dtype: torch.dtype = torch.float32, **given: object) -> tuple[Linear, DenoiseInputs]:
    """A head of 3 x 7 positions and what to draw from it."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    u = torch.rand(3, 7, 2, generator=generator, dtype=torch.float64)
    settings = {
        "temperature": 0.7, "top_p": 0.8, "excluded": [2, 3, 149], "softcap": 0.0, "top": False,
        "entropy": False, "embedding": False, **given,
    }  # fmt: skip
    hidden, weight, bias = normal(3, 7, WIDTH), normal(STATES, WIDTH), normal(STATES)
    linear = Linear(hidden, weight, bias, None, dtype, 5 * 4 * 192)  # five rows of float32
    return linear, DenoiseInputs(u, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "given", [{}, {"top_p": 1.0}, {"softcap": 2.0, "top_p": 0.5}, {"excluded": []}], ids=str
)
def test_tokens_are_those_of_the_reference(dtype, given):
    linear, inputs = make(dtype, **given)
    expected, *_ = reference.linear_denoise(linear, inputs)
    rows = torch.arange(21)
    got = row_blocks.draw_whole_rows(linear, inputs, rows, reference.reverse_step)
    assert torch.equal(got, expected.flatten())
    assert len(set(got.tolist())) > 5


def test_rows_without_a_position_are_not_read():
    linear, inputs = make()
    linear.hidden[0, 0] = torch.nan
    expected = row_blocks.draw_whole_rows(
        linear, inputs, torch.tensor([9, 4]), reference.reverse_step
    )
    rows = torch.tensor([9, -1, 4, -1, -1, -1])
    linear = replace(linear, rows=rows)
    got = row_blocks.draw_whole_rows(linear, inputs, rows, reference.reverse_step)
    assert torch.equal(got[[0, 2]], expected)
    none = row_blocks.draw_whole_rows(linear, inputs, rows[:0], reference.reverse_step)
    assert none.shape == (0,)


def test_a_row_without_a_distribution(monkeypatch):
    linear, inputs = make()
    linear.hidden[1, 2] = torch.nan
    rows = torch.tensor([8, 9])
    with pytest.raises(ValueError, match=r"the head's output at position \(1, 2\)"):
        row_blocks.draw_whole_rows(linear, inputs, rows, reference.reverse_step)
    monkeypatch.setattr(values, "enabled", lambda device: False)
    got = row_blocks.draw_whole_rows(linear, inputs, rows, reference.reverse_step)
    assert got[0] >= 0
    assert got[1] == -1
