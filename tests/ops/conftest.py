"""The fixtures that run a test on every backend, or on every one of a GPU."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest
import torch

import sedd_fast as sf
from helpers import smoke
from helpers.op_cases import BACKENDS, Backend, gpu_backends
from sedd_fast.backends import registry, values

#: Bytes of GPU memory that a process may keep for its next test; more is given to the others.
KEPT = 1 << 30
#: Where float16 runs in the interpreter: it differs from float32 in how a gradient is stored.
HALF = (
    "test_truth_at_odd_vocabularies",
    "test_law_at_odd_vocabularies",
    "test_dtypes_of_the_results",
    "test_truth_over_several_blocks",
    "test_half_dtypes_draw_nearly_the_same_tokens",
)

#: Tests of heads that a kernel can fail by itself: they run in the interpreter, with these values.
HEADS = (
    "test_truth_at_every_noise_level",
    "test_truth_at_odd_vocabularies",
    "test_truth_over_several_blocks",
    "test_a_small_workspace_changes_nothing",
    "test_without_a_bias",
    "test_layouts",
    "test_only_some_operands_want_gradients",
    "test_rows_without_loss_are_never_read",
    "test_nan_in_a_hidden_state",
    "test_an_empty_batch",
    "test_exp_overflows_only_where_the_value_does",
    "test_a_true_overflow_is_infinite_and_not_nan",
    "test_given_rows_change_nothing",
    "test_autocast",
    "test_same_u_same_tokens",
    "test_half_dtypes_draw_nearly_the_same_tokens",
    "test_given_rows",
    "test_unmasked_tokens_stay_and_are_never_read",
    "test_from_hidden_states",
)
FEW = {
    "dtype": (torch.float32, torch.float16),
    "reduction": ("none", "mean"),
    "vocabulary": (2, 513, 17),
    "workspace": (1, None),
    "missing": (2, 5),
    "sigma": (1e-5,),
    "method": ("analytic", "euler"),
    "kind": ("scaled", "uniform"),
    "shape": ((0, 4),),
    "shares": ({"temperature": 0.7, "top_p": 0.9},),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the smoke set where ``-m`` speaks of it."""
    if "smoke" in (config.getoption("-m") or ""):
        for item in smoke.chosen(items):
            item.add_marker(pytest.mark.smoke)


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, in force while the test runs."""
    chosen = request.param
    if reason := registry.unavailable(chosen.name, chosen.device):
        pytest.skip(f"{chosen}: {reason}")
    parameters = request.node.callspec.params.values()
    if wrong := [p for p in parameters if isinstance(p, torch.dtype) and p not in chosen.dtypes]:
        pytest.skip(f"{chosen} has no {wrong[0]}")
    if chosen.interpreted and torch.float16 in parameters and request.function.__name__ not in HALF:
        pytest.skip("interpreted: float16 goes the way of float32")
    with sf.use_backend(chosen.name), small_blocks(chosen):
        yield chosen


@pytest.fixture
def has_heads(request: pytest.FixtureRequest, backend: Backend) -> None:
    """Only backends that compute from hidden states, and in the interpreter only some cases."""
    if reason := registry.unsupported(backend.name, "linear_score_entropy", torch.float32):
        pytest.skip(f"{backend}: {reason}")
    if backend.interpreted and not _interpreted(request):
        pytest.skip("interpreted: another case goes the same way")


def _interpreted(request: pytest.FixtureRequest) -> bool:
    given = request.node.callspec.params
    unscaled = given.get("scaled") is False and getattr(given.get("graph"), "kind", "") != "uniform"
    known = request.function.__name__ in HEADS and not unscaled
    return known and all(given.get(name, some[0]) in some for name, some in FEW.items())


@pytest.fixture(params=gpu_backends("triton", "cuda"), ids=str)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each backend of GPUs in turn, in force while the test runs, and no value checked beforehand.

    Without a GPU: the Triton kernels in the interpreter.
    """
    chosen = request.param
    if reason := registry.unavailable(chosen.name, chosen.device):
        pytest.skip(f"{chosen}: {reason}")
    monkeypatch.delenv("SEDD_FAST_CHECK", raising=False)
    if chosen.interpreted:
        monkeypatch.setattr(values, "enabled", lambda device: False)
    with sf.use_backend(chosen.name), small_blocks(chosen):
        yield chosen


@contextlib.contextmanager
def small_blocks(backend: Backend) -> Iterator[None]:
    """In the interpreter, blocks of 512 states, tiles of 8 x 64, and those of a head 4 x 64.

    Small shapes then have the edges of big ones.
    """
    if not backend.interpreted:
        yield
        return
    from sedd_fast.kernels import linear_score_entropy as head
    from sedd_fast.kernels import settings, tiled_reverse_step, tiles

    small = {2: settings.LaunchSettings(1, 2, 128), 4: settings.LaunchSettings(2, 2, 128)}
    tile = tiles.MatmulTile(rows=8, states=64, depth=16, warps=1, stages=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "TABLE", dict.fromkeys(settings.TABLE, small))
        patch.setattr(settings, "SHORT", 0)
        patch.setattr(head, "TABLE", dict.fromkeys(head.TABLE, head.BlockTile(64, 4, 8, 2)))
        patch.setattr(tiles, "TABLE", dict.fromkeys(tiles.TABLE, tile))
        patch.setattr(tiled_reverse_step, "GROUP", 32)
        yield


@pytest.fixture(autouse=True)
def own_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a kernel does wrong shows in the test that launched it, and spoils no other one.

    A broken context fails whatever the process does next: pytest-xdist starts another one.
    """
    yield
    if request.node.get_closest_marker("gpu") is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        if torch.cuda.memory_reserved() > KEPT:
            torch.cuda.empty_cache()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            pytest.exit(f"{request.node.nodeid} broke the GPU's context: {error}", returncode=1)
        print(f"{request.node.nodeid}: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No other test that asks for this runs at the same time, in any process of pytest-xdist."""
    import fcntl

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "alone").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests this small would only wait for each other's threads; test_threads.py has its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
