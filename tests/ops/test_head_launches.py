"""Launches, synchronisation, layout and precision of the linear-head loss, in the interpreter."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from helpers.head_cases import Head, make_head, run
from helpers.launches import Launches, watched
from sedd_fast.backends import products, registry, values
from sedd_fast.backends.inputs import EntropyInputs
from sedd_fast.ops import TouchedRows

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or registry.unavailable("triton") is not None,
    reason="needs Triton and no GPU: it runs in Triton's interpreter",
)
GRAPHS = (sf.Absorbing(2500), sf.Uniform(2500))
ROOM = 30_000  # bytes of workspace: several blocks of all rows
by_graph = pytest.mark.parametrize("graph", GRAPHS, ids=["absorbing", "uniform"])
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Select Triton without checks of values, which are made on a CPU only."""
    monkeypatch.setattr(values, "enabled", lambda device: False)
    with sf.use_backend("triton"):
        yield


def head_of(graph: sf.Graph, dtype: torch.dtype = torch.float32, **rest: Any) -> Head:
    return make_head(graph, graph.kind == "absorbing", dtype, (2, 4), **rest)


def results(head: Head, seen: Launches, reduction: str = "sum", **rest: Any) -> Any:
    """Loss and gradients of the head; ``seen`` counts what its backend does."""
    module = registry.module("triton")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("linear_score_entropy", "linear_score_entropy_with_grad"):
            patch.setattr(module, name, watched(getattr(module, name), seen))
        if reduction == "none":
            return head.entropy(reduction, **rest)
        return run(head, reduction, **rest)


def touched(head: Head, listed: bool) -> TouchedRows | None:
    i = head.inputs
    return sf.touched_rows(i.x_t, i.graph, i.row_weight) if listed else None


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("listed", [True, False])
@by_dtype
@by_graph
def test_at_most_twelve_launches_and_five_a_block(graph, dtype, listed, with_grad, monkeypatch):
    """Ten are launched in the backend, two of them to make the last block's states even; the total
    loss of a batch takes two more.
    """
    head, seen = head_of(graph, dtype), Launches(monkeypatch)
    monkeypatch.setattr(products, "adds_in_float32", lambda device: True)
    monkeypatch.setattr(torch, "addmm", seen.one("addmm", Addmm()))
    results(head, seen, "sum" if with_grad else "none", rows=touched(head, listed), workspace=ROOM)
    blocks = seen.number("_linear_score_entropy")
    assert blocks >= 2
    assert seen.count <= 10 + (5 if with_grad else 3) * blocks, (
        seen.operations, [name for name, _ in seen.kernels],
    )  # fmt: skip


@pytest.mark.parametrize("listed", [True, False])
@by_graph
def test_the_device_is_synchronised_once_to_read_the_number_of_rows(graph, listed, monkeypatch):
    head, seen = head_of(graph), Launches(monkeypatch)
    results(head, seen, rows=touched(head, listed), workspace=ROOM)
    assert len(seen.waits) == (0 if listed else 1)


def test_all_rows_of_a_uniform_graph_need_no_synchronisation(monkeypatch):
    head, seen = head_of(GRAPHS[1]), Launches(monkeypatch)
    results(head, seen, weighted=False)
    assert not seen.waits


@pytest.mark.parametrize("count", [1, 1023, 1024, 3000])
@pytest.mark.parametrize("weighted", [True, False])
def test_positions_with_a_loss_are_listed_in_order(count, weighted):
    from sedd_fast.backends.triton.linear_score_entropy import touched

    generator = torch.Generator().manual_seed(count)
    x_t = torch.where(torch.rand(1, count, generator=generator) < 0.5, 7, 3)
    weight = (torch.rand(1, count, generator=generator) < 0.5).double() if weighted else None
    entropy = EntropyInputs(torch.ones(1).double(), x_t, x_t, weight, "absorbing", 7, 7, True)
    expected = (x_t == 7) & (True if weight is None else weight != 0)
    assert torch.equal(touched(entropy), expected.flatten().nonzero().squeeze(1))


@by_dtype
@by_graph
def test_every_block_has_the_same_stride_between_rows(graph, dtype, monkeypatch):
    head, seen = head_of(graph, dtype), Launches(monkeypatch)
    results(head, seen, workspace=ROOM)
    blocks = [args[0].scores for name, args in seen.kernels if name == "_linear_score_entropy"]
    assert len({block.shape[1] for block in blocks}) == 2  # the last one is narrower
    (apart,) = {block.stride(0) for block in blocks}
    assert apart * dtype.itemsize % 128 == 0
    assert len({block.data_ptr() for block in blocks}) == 1


def test_every_block_is_loaded_and_stored_in_whole_vectors():
    """Reads the PTX for sm_90, compiled for the arguments of the first and of the last block, each
    without and with the mask among its states.
    """
    pytest.importorskip("triton.backends.nvidia")
    code = (
        "import torch, triton;"
        "from benchmarks.studies import compile_kernels as c, launches as l;"
        "from triton.backends.compiler import GPUTarget;"
        "of = l.head_launches(torch.bfloat16, 50257);"
        "of = [x for x in of if 'absorbing with_grad,' in x.name and 'no bias' not in x.name];"
        "made = [triton.compile(s, target=GPUTarget('cuda', 90, 32), options=o)"
        " for x in of for s, o in [c.recorded(x, 90)]];"
        "print([(c.widths(m.asm['ptx'], 'ld'), c.widths(m.asm['ptx'], 'st')) for m in made])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert len(found) == 4
    for loads, stores in found:
        # Scores; terms of a row; the bias, once. No single score or gradient is loaded or stored.
        assert loads.startswith("128 x 2, 32 x "), loads
        assert stores.startswith("128 x 2, "), stores
        assert "16 x" not in stores


class Addmm:
    """torch.addmm with a working ``out_dtype``, and the checks of its arguments on CUDA.

    ``sums``: address of an output -> float64 sum of all products into it, the last used last.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.original = torch.addmm

    def __call__(self, added: Tensor, a: Tensor, b: Tensor, *, out: Tensor, **rest: Any) -> Tensor:
        if "out_dtype" not in rest:
            return self.original(added, a, b, out=out, **rest)
        assert added is out
        assert rest["out_dtype"] == added.dtype == torch.float32
        assert a.dtype == b.dtype == torch.bfloat16
        assert a.shape[1] == b.shape[0]
        assert added.shape == (a.shape[0], b.shape[1])
        exact = a.double() @ b.double()
        before = self.sums.pop(out.data_ptr(), None)  # without beta, of memory that was freed
        if rest["beta"]:
            assert before is not None
            exact += before
        self.sums[out.data_ptr()] = exact
        return out.copy_(a.float() @ b.float() + (added if rest["beta"] else 0))


@by_graph
@pytest.mark.parametrize("workspace", [ROOM, 6000], ids=["one part", "several"])
def test_gradients_add_up_in_float32(graph, workspace, monkeypatch):
    """Also for a float32 weight under autocast: no product may round its gradient to bf16."""
    head, addmm = head_of(graph, width=64), Addmm()
    monkeypatch.setattr(products, "adds_in_float32", lambda device: True)
    monkeypatch.setattr(torch, "addmm", addmm)
    with torch.autocast("cpu", torch.bfloat16):
        made = run(head, "sum", workspace=workspace)
    exact = {tuple(x.shape): x for x in addmm.sums.values()}
    blocks = [x for x in addmm.sums.values() if len(x) > len(made.hidden.flatten(0, 1))]
    assert len(blocks) >= 2
    whole = torch.cat([*blocks, made.weight[sum(map(len, blocks)) :].double()])
    torch.testing.assert_close(made.weight.double(), whole, rtol=1e-5, atol=1e-5)
    rows = made.hidden.flatten(0, 1)
    rows = rows[rows.abs().sum(1) > 0]
    totals = [x for shape, x in exact.items() if shape[0] <= len(made.hidden.flatten(0, 1))]
    assert totals
    torch.testing.assert_close(totals[-1], rows[-len(totals[-1]) :].double(), rtol=1e-5, atol=1e-5)


def test_products_without_out_dtype_are_rounded_and_added():
    a, b = torch.randn(5, 7).bfloat16(), torch.randn(7, 3).bfloat16()
    out = torch.full((5, 3), torch.nan)
    products.accumulate(out, a, b, again=False)
    assert torch.equal(out, (a @ b).float())
    products.accumulate(out, a, b, again=True)
    assert torch.equal(out, 2 * (a @ b).float())
    same = torch.full((5, 3), torch.nan)
    products.accumulate(same, a.float(), b.float(), again=False)
    products.accumulate(same, a.float(), b.float(), again=True)
    torch.testing.assert_close(same, 2 * (a.float() @ b.float()))


def test_only_cuda_adds_half_products_in_float32():
    products.adds_in_float32.cache_clear()
    assert not products.adds_in_float32(torch.device("cpu"))
    assert torch.ops.aten.addmm.dtype_out._schema.arguments[3].name == "out_dtype"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("count", [1, 2049, 3 * 2048 * 4])
def test_scale_gradient(count, factor, dtype, monkeypatch):
    from sedd_fast.backends.triton.scale_gradient import scale_gradient
    from sedd_fast.kernels import scale_gradient as kernel

    monkeypatch.setattr(kernel, "PROGRAMS", 4)
    made = torch.randn(count, dtype=torch.float32 if dtype == torch.float16 else dtype)
    kept, upstream = made.clone(), torch.tensor(factor)
    expected = (made.float() * factor).to(dtype)
    little = 2**-7 if dtype == torch.bfloat16 else 2**-10  # the interpreter truncates
    other = scale_gradient(made, upstream, dtype, in_place=False)
    assert other.dtype == dtype
    assert other.data_ptr() != made.data_ptr()
    assert torch.equal(made, kept)
    torch.testing.assert_close(other, expected, rtol=little, atol=0)
    same = scale_gradient(made, upstream, dtype, in_place=True)
    assert (same.data_ptr() == made.data_ptr()) == (dtype == made.dtype)
    torch.testing.assert_close(same, expected, rtol=little, atol=0)


def test_a_gradient_scaled_by_one_is_not_written(monkeypatch):
    """The input holds a NaN with an unusual payload, which a multiplication would change."""
    from sedd_fast.backends.triton.scale_gradient import scale_gradient

    made = torch.full((8,), 0x7F8ABCDE, dtype=torch.int32).view(torch.float32)
    got = scale_gradient(made, torch.tensor(1.0), torch.float32, in_place=True)
    assert bool((got.view(torch.int32) == 0x7F8ABCDE).all())
    got = scale_gradient(made, torch.tensor(2.0), torch.float32, in_place=True)
    assert bool((got.view(torch.int32) != 0x7F8ABCDE).all())


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Set SEDD_FAST_AUTOTUNE=1, run every candidate twice to time it; returns the kernels timed."""
    import triton

    from sedd_fast.kernels import settings

    kernels: list[str] = []

    def fake_timing(call: Callable[[], object], quantiles: object = None) -> list[float]:
        call()
        call()
        kernels.append("")
        return [float(len(kernels))] * 3

    settings.autotuned.cache_clear()
    timing = functools.partial(triton.autotune, do_bench=fake_timing)
    monkeypatch.setattr(triton, "autotune", timing)
    monkeypatch.setenv("SEDD_FAST_AUTOTUNE", "1")
    yield kernels
    settings.autotuned.cache_clear()


@by_graph
def test_timing_settings_does_not_change_results_of_a_head(graph, timed, monkeypatch):
    head = head_of(graph)
    got = run(head, "sum")
    monkeypatch.delenv("SEDD_FAST_AUTOTUNE")
    for name, value in run(head, "sum").named().items():
        assert torch.equal(value, getattr(got, name)), name


@pytest.mark.parametrize("graph", [sf.Absorbing(11), sf.Uniform(11)], ids=["absorbing", "uniform"])
def test_timing_settings_does_not_change_other_results(graph, timed, monkeypatch):
    """A kernel that is timed runs many times, so none may read what it writes."""
    head = make_head(graph, shape=(1, 2))
    i = head.inputs

    def results() -> tuple[Tensor, ...]:
        loss, gradient = sf.score_entropy_with_grad(*i.entropy(), i.row_weight)
        return loss, gradient, sf.reverse_step(*i.reverse(), u=i.u), head.step()

    expected = results()
    assert timed
    monkeypatch.delenv("SEDD_FAST_AUTOTUNE")
    for got, value in zip(results(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-5)
