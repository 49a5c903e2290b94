"""How a CPU cuts a cross entropy: within its workspace, and as was measured to be fast."""

import json
import statistics
from pathlib import Path

import pytest
import torch

import sedd_fast as sf
from sedd_fast.backends import registry, softmax_plan
from sedd_fast.backends.softmax_plan import Head, Plan

MEASURED = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "softmax-cuts.json").read_text()
)


def head(workspace: int, **others: int) -> Head:
    return Head(**{**MEASURED["head"], **others}, workspace=workspace, speed=softmax_plan.OURS)


TIMES = {Plan(cut["rows"], cut["kept"]): statistics.median(cut["ms"]) for cut in MEASURED["cuts"]}


def fits(cut: Plan, made: Head) -> bool:
    widest = softmax_plan.widest(made, cut.rows)
    return widest is not None and cut.kept <= widest.kept


@pytest.mark.parametrize("mib", MEASURED["workspaces_mib"])
def test_the_plan_is_among_the_fastest_measured(mib: int):
    """Medians of the same cut differ by as much between the tables."""
    made = head(mib << 20)
    least = min(ms for cut, ms in TIMES.items() if fits(cut, made))
    assert TIMES[softmax_plan.plan(made)] <= 1.07 * least


@pytest.mark.parametrize("cut", TIMES, ids=str)
def test_predicted_and_measured_times_agree(cut: Plan):
    assert 1e3 * softmax_plan.seconds(head(0), cut) == pytest.approx(TIMES[cut], rel=0.15)


@pytest.mark.parametrize("rows", [1, 7, 512, 4096])
@pytest.mark.parametrize("states", [2, 1009, 50258, 262144])
@pytest.mark.parametrize("workspace", [1 << 14, 1 << 20, 1 << 25, 1 << 30])
def test_a_plan_fits_the_workspace(rows: int, states: int, workspace: int):
    made = head(workspace, rows=rows, states=states)
    cut = softmax_plan.plan(made)
    assert 1 <= cut.rows <= rows
    assert 0 <= cut.kept <= made.blocks
    kept = min(cut.kept * made.block, states) * made.item
    least = cut == Plan(min(made.multiple, rows), 0)
    used = made.fixed_bytes + made.padded(cut.rows) * (made.row_bytes + kept)
    assert used <= workspace or least


def test_a_sum_in_float32_counts_as_workspace():
    """Rows are not cut where the gradient of a 16-bit weight would need a sum beside it."""
    beside = 4 * 50258 * 256
    assert softmax_plan.plan(head(1 << 24, accumulator=beside)).rows == 512
    few = softmax_plan.widest(head(32 << 20, accumulator=beside), 96)
    assert few is None  # the sum alone takes 51 MB


def test_all_rows_at_once_rather_than_a_sum_beside_the_result():
    made = head(8 << 20, rows=1000, row_bytes=5000, accumulator=4 * 60_000 * 128)
    assert softmax_plan.fewest(made) == 1000
    assert softmax_plan.fewest(made._replace(accumulator=0)) == 512


def test_all_is_kept_where_it_fits():
    assert softmax_plan.plan(head(1 << 30)) == Plan(512, 419)


@pytest.mark.skipif(registry.unavailable("cpp") is not None, reason="no C++ kernels here")
@pytest.mark.parametrize("cut", [Plan(11, 0), Plan(11, 9), Plan(11, 26), Plan(4, 14), Plan(3, 26)])
def test_every_cut_gives_the_same_gradients(cut: Plan, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    shapes = (11, 8), (3100, 8), (3100,)  # 26 blocks of states
    leaves = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    target = torch.randint(3100, (11,), generator=generator)

    def gradients(backend: str) -> tuple[torch.Tensor, ...]:
        with sf.use_backend(backend):
            loss = sf.linear_cross_entropy(*leaves, target, excluded=3, reduction="mean")
            return torch.autograd.grad(loss, leaves)

    target[target == 3] = 4
    monkeypatch.setattr(softmax_plan, "plan", lambda head: cut)
    for got, expected in zip(gradients("cpp"), gradients("reference"), strict=True):
        torch.testing.assert_close(got, expected)
