"""How a CPU cuts a cross entropy: within its workspace, and as was measured to be fast."""

import json
from pathlib import Path

import pytest
import torch

import sedd_fast as sf
from sedd_fast.backends import registry, softmax_plan
from sedd_fast.backends.softmax_plan import Head, Plan

MEASURED = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "softmax-cuts.json").read_text()
)


def head(workspace: int, rows: int = 512, states: int = 50258, accumulator: int = 0) -> Head:
    return Head(rows, states, 256, min(1008, states), workspace, 4, accumulator)


def by_workspace() -> dict[int, dict[Plan, float]]:
    found: dict[int, dict[Plan, float]] = {}
    for each in MEASURED["measured"]:
        found.setdefault(each["workspace_mib"], {})[Plan(each["rows"], each["kept"])] = each["ms"]
    return found


@pytest.mark.parametrize("mib", by_workspace())
def test_the_plan_is_among_the_fastest_measured(mib: int):
    times = by_workspace()[mib]
    assert times[softmax_plan.plan(head(mib << 20))] <= 1.05 * min(times.values())


@pytest.mark.parametrize("mib", by_workspace())
def test_predicted_and_measured_times_agree(mib: int):
    for cut, ms in by_workspace()[mib].items():
        predicted = 1e3 * softmax_plan.seconds(head(mib << 20), cut)
        assert predicted == pytest.approx(ms, rel=0.15), cut


@pytest.mark.parametrize("rows", [1, 7, 512, 4096])
@pytest.mark.parametrize("states", [2, 1009, 50258, 262144])
@pytest.mark.parametrize("workspace", [1 << 14, 1 << 20, 1 << 25, 1 << 30])
def test_a_plan_fits_the_workspace(rows: int, states: int, workspace: int):
    made = head(workspace, rows, states)
    cut = softmax_plan.plan(made)
    assert 1 <= cut.rows <= rows
    assert 0 <= cut.kept <= made.blocks
    bytes_a_row = made.width * 12 + made.block * 4 + min(cut.kept * made.block, states) * 4
    assert cut.rows * bytes_a_row <= workspace or cut == Plan(1, 0)


def test_a_sum_in_float32_counts_as_workspace():
    """Rows are not cut where the gradient of a 16-bit weight would need a sum beside it."""
    assert softmax_plan.plan(head(1 << 24, accumulator=4)).rows == 512
    few = softmax_plan.widest(head(32 << 20, accumulator=4), 100)
    assert few is None  # the sum alone takes 51 MB


def test_all_is_kept_where_it_fits():
    assert softmax_plan.plan(head(1 << 30)) == Plan(512, 50)


@pytest.mark.skipif(registry.unavailable("cpp") is not None, reason="no C++ kernels here")
@pytest.mark.parametrize("cut", [Plan(11, 0), Plan(11, 2), Plan(11, 4), Plan(4, 3), Plan(3, 4)])
def test_every_cut_gives_the_same_gradients(cut: Plan, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    shapes = (11, 8), (3100, 8), (3100,)  # four blocks of states
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
