"""The fixtures that run a test on every backend, or on every backend of a GPU.

Triton's interpreter takes milliseconds a position. Markers therefore say which cases run in it:

- ``interpreted(name=values, ...)``: those whose parameter ``name`` has one of ``values``. The
  others run the same code of a kernel.
- ``not_interpreted``: none, because the test is of the code around a kernel, which is the same for
  every backend.
- ``interpreted_float16``: the test's float16 cases run in the interpreter. It leaves out those of
  other tests, because float16 differs from float32 only in how a gradient is stored.
- ``interpreted_head(name=values, ...)``: the test of a linear head runs in the interpreter, in the
  cases whose parameter ``name`` has one of ``values``. Tests of a head without the marker, and
  bfloat16 and unscaled absorbing cases, run the same code of a kernel as others, and are left out.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

import pytest
import torch

import sedd_fast as sf
from helpers import smoke
from helpers.op_cases import BACKENDS, Backend, gpu_backends
from sedd_fast.backends import products, registry, values

#: Bytes of GPU memory that a process may keep for its next test; what it has beyond that is freed.
KEPT = 1 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the cases that the interpreter leaves out; mark the smoke set where ``-m`` names it.

    Thousands of skipped cases would take half a minute.
    """
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
    if "smoke" in (config.getoption("-m") or ""):
        for item in smoke.chosen(items):
            item.add_marker(pytest.mark.smoke)


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, selected while the test runs."""
    chosen = request.param
    if reason := registry.unavailable(chosen.name, chosen.device):
        pytest.skip(f"{chosen}: {reason}")
    parameters = request.node.callspec.params.values()
    if wrong := [p for p in parameters if isinstance(p, torch.dtype) and p not in chosen.dtypes]:
        pytest.skip(f"{chosen} has no {wrong[0]}")
    with sf.use_backend(chosen.name), small_blocks(chosen):
        yield chosen


def _is_left_out(item: pytest.Item) -> bool:
    """Whether a case would run in Triton's interpreter, and the markers leave it out."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    chosen = given.get("backend", given.get("gpu"))
    if not (isinstance(chosen, Backend) and chosen.interpreted):
        return False
    if registry.unavailable(chosen.name, chosen.device):
        return False  # skipped, and the reason is named
    half = "backend" in given and torch.float16 in given.values()
    if _is_repeated(item) or (half and item.get_closest_marker("interpreted_float16") is None):
        return True
    return "has_heads" in item.fixturenames and not _is_interpreted(item)


def _is_repeated(item: pytest.Function) -> bool:
    """Whether the markers of a case leave it out of Triton's interpreter."""
    marker, given = item.get_closest_marker("interpreted"), item.callspec.params
    if item.get_closest_marker("not_interpreted"):
        return True
    return marker is not None and any(given[k] not in v for k, v in marker.kwargs.items())


@pytest.fixture
def has_heads(request: pytest.FixtureRequest, backend: Backend) -> None:
    """Skip backends without linear-head operations, and cases that the interpreter leaves out."""
    for op in ("linear_score_entropy", smoke.operation(request.node)):
        if op and (reason := registry.unsupported(backend.name, op, torch.float32)):
            pytest.skip(f"{backend}: {reason}")


def _is_interpreted(item: pytest.Function) -> bool:
    """Whether a case of a linear head runs in Triton's interpreter."""
    given = item.callspec.params
    unscaled = given.get("scaled") is False and getattr(given.get("graph"), "kind", "") != "uniform"
    marker = item.get_closest_marker("interpreted_head")
    if marker is None or unscaled or given.get("dtype") == torch.bfloat16:
        return False
    return all(given[name] in values for name, values in marker.kwargs.items())


@pytest.fixture(params=gpu_backends("triton", "cuda"), ids=str)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each GPU backend in turn, selected while the test runs. Launches do not check values first.

    Without a GPU, the Triton kernels run in the interpreter.
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
    """Use blocks of 512 states, tiles of 8 x 64, and head tiles of 4 x 64 in the interpreter.

    Small shapes then have the same edge cases as large ones.
    """
    if not backend.interpreted:
        yield
        return
    from sedd_fast.kernels import linear_reverse_step, settings, tiles
    from sedd_fast.kernels import linear_score_entropy as head

    step = importlib.import_module("sedd_fast.backends.triton.linear_reverse_step")
    small = {2: settings.LaunchSettings(1, 2, 128), 4: settings.LaunchSettings(2, 2, 128)}
    tile = tiles.MatmulTile(rows=8, states=64, depth=16, warps=1, stages=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "TABLE", dict.fromkeys(settings.TABLE, small))
        patch.setattr(settings, "SHORT", 0)
        patch.setattr(head, "TABLE", dict.fromkeys(head.TABLE, head.BlockTile(64, 4, 8, 2)))
        patch.setattr(tiles, "TABLE", dict.fromkeys(tiles.TABLE, tile))
        patch.setattr(linear_reverse_step, "GROUP", 32)
        patch.setattr(step, "GROUPED", (torch.float32, *step.GROUPED))
        yield


@pytest.fixture(autouse=True)
def own_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Report an asynchronous CUDA error in the test that launched the kernel.

    After such an error every later call of the process fails, so the process ends; pytest-xdist
    starts another one.
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
    """Tests that use this fixture run one at a time, over all processes of pytest-xdist."""
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
    """Use one thread: more would slow small tests down. test_threads.py sets its own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def products_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs without fast products of 16-bit numbers form them in that dtype all the same."""
    monkeypatch.setattr(products, "_has_products", lambda dtype: True)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Start with an empty compile cache, and compile small kernels in this process."""
    import torch._inductor.config as inductor

    torch.compiler.reset()
    with inductor.patch(compile_threads=1):
        yield


@pytest.fixture
def kernels(backend: Backend) -> Backend:
    """One backend only: the compiled code is around the operation, not in it."""
    if backend.name == "reference":
        pytest.skip("another backend suffices")
    return backend
