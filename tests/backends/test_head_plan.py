"""How many rows and states of a head a GPU computes at a time."""

import itertools

import pytest
import torch

from sedd_fast.backends import row_blocks
from sedd_fast.backends.head import Linear
from sedd_fast.backends.head_plan import Head, Plan, cheaper, depth, plan

#: SEDD-small in bf16 with gradients: bytes per row and per score.
SMALL = Head(4096, 50_257, 768, 64 << 20, 768 * 6 + 44, 2 + 4 / 256 + 4 / 128)


#: The same for a cross entropy, whose scores are needed twice, and whose weight's gradient is
#: added up in float32 where rows are cut.
TWICE = SMALL._replace(
    workspace=256 << 20, row_bytes=768 * 6 + 197 * 8, score_bytes=2 + 4 / 128,
    sum_bytes=4 * 50_257 * 768,
)  # fmt: skip
WHOLE, FORMED_AGAIN = {"whole": True}, {"passes": 2}


def bytes_of(head: Head, found: Plan) -> float:
    return found.rows * (head.row_bytes + found.states * head.score_bytes)


def test_sedd_small_on_an_h100_fills_one_wave_of_the_weight_gradient():
    """5,632 states x 768 are 44 x 3 tiles of 128 x 256, and the H100 has 132 multiprocessors."""
    assert plan(SMALL, 132) == Plan(4096, 5632)
    assert depth(SMALL, Plan(4096, 5632), 132) < 0.83 * depth(SMALL, Plan(4096, 5888), 132)


@pytest.mark.parametrize("multiprocessors", [1, 108, 132, 148])
@pytest.mark.parametrize("rows", [1, 100, 128, 1000, 4097, 20_000, 200_000])
@pytest.mark.parametrize("states", [2, 11, 300, 5633, 50_257, 126_464])
def test_every_plan_fits_and_has_whole_tiles(multiprocessors, rows, states):
    head = SMALL._replace(rows=rows, states=states)
    found = plan(head, multiprocessors)
    assert bytes_of(head, found) <= head.workspace
    assert found.rows == rows or found.rows % 128 == 0
    assert found.states % 256 == 0
    assert found.states < states + 256
    assert found.states >= min(1024, states)


def test_a_plan_is_no_worse_than_any_that_fits():
    for rows, multiprocessors in itertools.product((1024, 4096, 12_288), (108, 132)):
        head = SMALL._replace(rows=rows)
        parts = (-(-rows // n // 128) * 128 for n in range(1, 9))
        fits = [
            Plan(part, states)
            for part, states in itertools.product(parts, range(1024, 50_432, 256))
            if bytes_of(head, Plan(part, states)) <= head.workspace
        ]
        best = min(depth(head, some, multiprocessors) for some in fits)
        assert depth(head, plan(head, multiprocessors), multiprocessors) <= 1.02 * best


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rows": 1024}, (Plan(1024, 50_432), True)),  # the workspace holds all of them
        ({"rows": 8192}, (Plan(1024, 50_432), True)),  # eight parts
        (
            {"rows": 8192, "width": 4096, "row_bytes": 26_152, "sum_bytes": 4 * 50_257 * 4096},
            (Plan(8192, 3072), False),
        ),  # the sums alone exceed the workspace
        ({"rows": 8192, "sum_bytes": 0, "weight": False}, (Plan(2048, 50_432), True)),
        ({"rows": 100, "states": 2_000_000}, (Plan(100, 1_029_376), False)),
    ],
    ids=str,
)
def test_scores_are_kept_where_that_is_cheaper(changed, expected):
    head = TWICE._replace(**changed)
    kept, formed = head._replace(**WHOLE), head._replace(**FORMED_AGAIN)
    found, is_kept = cheaper(kept, formed, 132)
    assert (found, is_kept) == expected
    chosen, other = (kept, formed) if is_kept else (formed, kept)
    again = plan(other, 132)
    fits = bytes_of(other, again) <= other.workspace - other.sum_bytes * (again.rows < other.rows)
    assert not fits or depth(chosen, found, 132) <= depth(other, again, 132)


@pytest.mark.parametrize("rows", [1500, 4096, 100_000])
def test_sums_of_the_weight_gradient_are_part_of_the_workspace(rows):
    """Of whole rows always; of blocks, which may have to be cut, half of it at most."""
    for of, least in ((WHOLE, 0), (FORMED_AGAIN, TWICE.workspace // 2)):
        head = TWICE._replace(rows=rows, **of)
        found = plan(head, 132)
        room = head.workspace
        if found.rows < rows:
            room = max(room - head.sum_bytes, least)
        assert bytes_of(head, found) <= room


@pytest.mark.parametrize("workspace", [1, 3000, 100_000])
def test_a_workspace_too_small_for_128_rows_takes_fewer(workspace):
    found = plan(SMALL._replace(workspace=workspace, states=300), 132)
    assert found == Plan(max(1, int(workspace / (SMALL.row_bytes + 512 * SMALL.score_bytes))), 512)


def test_no_rows_at_all():
    assert plan(SMALL._replace(rows=0), 132).rows == 1


@pytest.mark.parametrize("states", [1, 63, 64, 130, 1000, 2100])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64], ids=str)
def test_products_on_a_gpu_have_an_even_number_of_states(states, weight_dtype, monkeypatch):
    monkeypatch.setattr(row_blocks, "is_tiled", lambda device: True)
    monkeypatch.setattr(row_blocks, "GPU_STATES", 512)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(size, generator=generator) for size in ((3, 8), (states, 8), (states,))
    )
    expected = torch.nn.functional.linear(hidden, weight, bias)
    for given in (bias, None):
        head = Linear(hidden[None], weight.to(weight_dtype), given, None, torch.float32, 1 << 20)
        parts = [at.stop - at.start for at in row_blocks._parts(head)]
        assert sum(parts) == states
        assert all(part % row_blocks.ALIGNMENT == 0 for part in parts[:-1])
        assert max(parts) <= 512
        out = torch.full((3, states), torch.nan)
        row_blocks._product(head, hidden, out)
        torch.testing.assert_close(out, expected if given is not None else expected - bias)


@pytest.mark.parametrize(("fit", "whole"), [(667, 640), (128, 128), (127, 127), (3, 3)])
def test_rows_of_a_step_come_in_whole_tiles(fit, whole, monkeypatch):
    weight = torch.empty(1000, 8)
    linear = Linear(torch.empty(1, 1, 8), weight, None, None, weight.dtype, fit * 1024 * 4)
    assert row_blocks.rows_at_once(linear) == fit  # a CPU has no such tiles
    monkeypatch.setattr(row_blocks, "is_tiled", lambda device: True)
    assert row_blocks.rows_at_once(linear) == whole
