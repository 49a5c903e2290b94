"""The Triton backend of heads with a softmax: cuts, launches, and values that are not checked."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.launches import Launches, watched
from helpers.op_cases import Backend, gpu_backends
from sedd_fast.backends import head_plan, registry
from sedd_fast.ops import TouchedRows

pytestmark = pytest.mark.parametrize("gpu", gpu_backends("triton"), ids=str, indirect=True)
STATES, WIDTH = 700, 8
#: How a call in float32 is cut -> rows, bytes of workspace, and (rows at a time, blocks, kept).
CUTS = {
    "whole rows": (20, 1 << 20, (20, 2, True)),
    "parts of whole rows": (20, 28_000, (8, 2, True)),
    "states": (8, 20_000, (8, 2, False)),
    "rows and states": (20, 12_000, (8, 3, False)),
    "single rows": (3, 2000, (1, 3, False)),
}
by_cut = pytest.mark.parametrize("cut", CUTS)


@pytest.fixture
def cuts(gpu: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, bool]]]:
    """The cuts of all calls; blocks have at least 256 states, and parts a multiple of 8 rows."""
    from sedd_fast.kernels import linear_score_entropy

    cuts = importlib.import_module("sedd_fast.backends.triton.softmax_blocks").Cuts
    original, made = cuts.of, []

    def of(*given: Any, **rest: Any) -> Any:
        found = original(*given, **rest)
        made.append((found.rows, len(found.blocks), found.kept))
        return found

    monkeypatch.setattr(cuts, "of", of)
    tile = linear_score_entropy.BlockTile(128, 8, 16, 2)
    monkeypatch.setattr(
        linear_score_entropy, "TABLE", dict.fromkeys(linear_score_entropy.TABLE, tile)
    )
    monkeypatch.setattr(head_plan, "FEWEST", 256)
    monkeypatch.setattr(head_plan, "TILE_ROWS", 8)
    head_plan._best.cache_clear()
    yield made
    head_plan._best.cache_clear()


class Case:
    """Operands and targets of some rows, (rows, ...) each."""

    def __init__(self, rows: int, device: str, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(rows)

        def normal(*size: int) -> Tensor:
            drawn = torch.randn(size, generator=generator, dtype=torch.float64)
            return drawn.to(device, dtype)

        self.operands = normal(rows, WIDTH), normal(STATES, WIDTH), normal(STATES)
        self.target = torch.randint(9, STATES, (rows,), generator=generator).to(device)
        self.row_weight = normal(rows)
        self.u = torch.rand(rows, 2, generator=generator, dtype=torch.float64).to(device)

    def entropy(self, reduction: str = "sum", **given: Any) -> list[Tensor]:
        """The loss and the gradients of the operands."""
        leaves = [x.detach().clone().requires_grad_() for x in self.operands]
        given = {"excluded": [2, 3], "z_loss": 1e-2, **given}
        loss = sf.linear_cross_entropy(
            *leaves, self.target, self.row_weight, reduction=reduction, **given
        )
        loss.sum().backward()
        return [loss.detach(), *(x.grad for x in leaves)]

    def truth(self, **given: Any) -> list[Tensor]:
        """The same from the reference in float64."""
        exact = Case(len(self.target), self.target.device.type, torch.float64)
        exact.operands = tuple(x.double() for x in self.operands)
        exact.target, exact.row_weight = self.target, self.row_weight
        with sf.use_backend("reference"):
            return exact.entropy(**given)


def assert_near(got: list[Tensor], expected: list[Tensor], little: float = 1e-5) -> None:
    for value, true in zip(got, expected, strict=True):
        atol = little * float(true.abs().max())
        torch.testing.assert_close(value.double(), true, rtol=little, atol=atol)


@by_cut
def test_every_cut_gives_the_same_gradients(gpu, cuts, cut):
    rows, room, expected = CUTS[cut]
    case = Case(rows, gpu.device)
    got = case.entropy(workspace=room)
    assert cuts == [expected]
    assert_near(got, case.truth())


def test_a_backward_forms_the_scores_once_more(gpu, cuts):
    case = Case(8, gpu.device)
    got = case.entropy("none", workspace=20_000, softcap=3.0)
    assert [kept for *_, kept in cuts] == [False, False]
    assert_near(got, case.truth(reduction="none", softcap=3.0))


def test_the_weight_gradient_of_parts_adds_up_in_float32(gpu, cuts, monkeypatch):
    module = importlib.import_module("sedd_fast.backends.triton.linear_cross_entropy")
    original, sums = module.accumulate, []

    def accumulate(out: Tensor, *rest: Any, **again: bool) -> None:
        sums.append(out.dtype)
        original(out, *rest, **again)

    monkeypatch.setattr(module, "accumulate", accumulate)
    got = Case(20, gpu.device, torch.bfloat16).entropy(workspace=6000)
    assert cuts[0][0] == 8
    assert set(sums) == {torch.float32}
    assert got[2].dtype == torch.bfloat16


def counted(monkeypatch: pytest.MonkeyPatch, *operations: str) -> Launches:
    """Counts what the backend does in those operations; off a GPU."""
    if torch.cuda.is_available():
        pytest.skip("counts launches of the interpreter")
    seen, module = Launches(monkeypatch), registry.module("triton")
    for name in operations:
        monkeypatch.setattr(module, name, watched(getattr(module, name), seen))
    return seen


@pytest.mark.parametrize(("cut", "each", "listed"), [("whole rows", 6, True), ("states", 7, False)])
def test_launches_and_synchronisation_of_an_entropy(gpu, cuts, cut, each, listed, monkeypatch):
    """A block: its product and sums, formed again its product, and the gradient, two products with
    it and its sums over rows. Besides, a bias with excluded states, memory that is set to 0, and
    the last weight, made even once or twice.
    """
    rows, room, _ = CUTS[cut]
    case, seen = Case(rows, gpu.device), counted(monkeypatch, "linear_cross_entropy_with_grad")
    index = TouchedRows.at(torch.arange(rows)) if listed else None
    case.entropy(workspace=room, rows=index)
    blocks = cuts[0][1]
    assert seen.number("_softmax_sums") == seen.number("_softmax_gradient") == blocks
    limit = 12 + each * blocks + 3 * (not listed)
    assert seen.count <= limit, (seen.operations, [name for name, _ in seen.kernels])
    assert len(seen.waits) == (not listed)


def test_launches_of_a_denoising_step(gpu, cuts, monkeypatch):
    """A block: its product and statistics."""
    case, seen = Case(8, gpu.device), counted(monkeypatch, "linear_denoise")
    want = ("token", "log_prob", "argmax", "margin", "entropy", "log_sum_exp")
    sf.linear_denoise(*case.operands, u=case.u, excluded=3, want=want, workspace=18_000)
    blocks = cuts[0][1]
    assert blocks == seen.number("_statistics") > 1
    assert seen.count <= 8 + 2 * blocks, (seen.operations, [name for name, _ in seen.kernels])
    assert not seen.waits


def test_values_that_are_not_checked(gpu, cuts):
    """A target that is no state, NaN hidden states that are not read, and an excluded target."""
    case = Case(20, gpu.device)
    case.target[4], case.target[5], case.target[6] = STATES, -7, 2
    case.row_weight[9] = 0
    case.target[9] = 2**40
    hidden = case.operands[0]
    hidden[9] = hidden[11] = torch.nan
    listed = [8, -1, *(i for i in range(20) if i not in (8, 11)), -1]
    rows = TouchedRows.at(torch.tensor(listed, device=gpu.device))
    loss, *gradients = case.entropy("none", rows=rows, workspace=12_000)
    assert bool(loss[[4, 5]].isnan().all())
    assert bool(loss[6].isinf())
    assert not bool(gradients[0][[4, 5, 6, 9, 11]].any())
    bad = [4, 5, 6, 9, 11]
    case.row_weight[bad] = 0
    case.target[bad] = 9
    hidden[bad] = 0
    expected = case.truth(reduction="none")
    loss[bad] = 0
    assert_near([loss, *gradients], expected)


@pytest.mark.parametrize(
    ("rows", "room", "temperature"), [(9, 1 << 20, 0.7), (8, 12_000, 1.0), (2, 1500, 0.7)]
)
def test_every_cut_gives_the_same_statistics(gpu, cuts, rows, room, temperature, monkeypatch):
    """With a row of groups read two at a time."""
    kernel = importlib.import_module("sedd_fast.kernels.linear_denoise")
    monkeypatch.setattr(kernel, "SEGMENT", 2)
    case = Case(rows, gpu.device)
    case.operands[1][650] = case.operands[1][5] = 4 * case.operands[0][0]  # two likeliest states
    case.operands[2][650] = case.operands[2][5]
    given = {"u": case.u, "temperature": temperature, "excluded": [0, 699], "softcap": 50.0}
    got = sf.linear_denoise(*case.operands, workspace=room, **given)
    with sf.use_backend("reference"):
        expected = sf.linear_denoise(*(x.double() for x in case.operands), **given)
    assert int(got.argmax[0]) == 5
    for name, value in got._asdict().items():
        true = getattr(expected, name)
        if value.dtype == torch.int64:
            assert torch.equal(value, true), name
        else:
            torch.testing.assert_close(value.double(), true, rtol=1e-4, atol=1e-5, msg=name)
    assert bool((got.log_prob <= got.max_log_prob).all())


def test_a_row_without_a_distribution_draws_no_token(gpu, cuts):
    case = Case(4, gpu.device)
    case.operands[0][1] = torch.nan
    got = sf.linear_denoise(*case.operands, u=case.u, workspace=12_000)
    for name, value in got._asdict().items():
        if value.dtype == torch.int64:
            assert (value < 0).tolist() == [False, True, False, False], name
        elif value.dim() == 1:
            assert value.isnan().tolist() == [False, True, False, False], name


def test_a_top_p_refuses_a_vocabulary_that_exceeds_a_step(gpu):
    from sedd_fast.backends.triton.launch import MOST_STATES_OF_A_STEP

    head = torch.zeros(MOST_STATES_OF_A_STEP, 1, device=gpu.device), None
    hidden = torch.zeros(1, 1, device=gpu.device)
    with pytest.raises(RuntimeError, match=r"with top_p < 1 cannot .* reverse_step"):
        sf.linear_denoise(hidden, *head, top_p=0.9)
