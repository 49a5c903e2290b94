"""Which backend runs: requests, fallbacks, the environment, nesting, threads, backward."""

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sedd_fast as sf
from sedd_fast.backends import choices, cpp, cuda, gpu, reference, registry, triton

GRAPH = sf.Absorbing(5)
needs_cpp = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")


@pytest.fixture(autouse=True)
def no_request(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without a requested backend and without remembered choices."""
    monkeypatch.delenv("SEDD_FAST_BACKEND", raising=False)
    remembered = (registry._warn_of_fallback, registry._chosen)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def no_cpp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without the compiled module."""

    def missing() -> None:
        raise ImportError("no such file")

    monkeypatch.setattr(cpp, "kernels", missing)
    cpp.unavailable.cache_clear()
    yield
    cpp.unavailable.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backend functions that ran, in order."""
    seen: list[str] = []

    def watched(name: str, op: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            seen.append(f"{name}.{op}")
            return function(*args)

        return run

    for name, module in (("reference", reference), ("cpp", cpp)):
        for op in ("score_entropy", "score_entropy_backward", "reverse_step"):
            monkeypatch.setattr(module, op, watched(name, op, getattr(module, op)))
    return seen


def loss() -> torch.Tensor:
    """A loss that has a gradient."""
    log_score = torch.zeros(1, 2, 6, requires_grad=True)
    x_t, x_0 = torch.tensor([[5, 1]]), torch.tensor([[0, 1]])
    return sf.score_entropy(log_score, 1.0, x_t, x_0, GRAPH, reduction="sum")


@needs_cpp
def test_the_automatic_choice_on_a_cpu_is_cpp(calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss()
    assert calls == ["cpp.score_entropy"]
    assert registry.requested() is None


def test_the_automatic_choice_falls_back_with_one_warning(no_cpp, calls):
    with pytest.warns(RuntimeWarning, match=r"'reference' backend.*'cpp'.*no such file.*compiler"):
        loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss()
    assert calls == ["reference.score_entropy"] * 2


def test_an_explicit_request_never_falls_back(no_cpp, calls):
    remedy = r"'cpp' was asked for, but .*no such file.*pip install.*usable here: reference"
    with sf.use_backend("cpp"), pytest.raises(RuntimeError, match=remedy):
        loss()
    assert calls == []


def test_a_request_by_environment_never_falls_back_either(no_cpp, calls, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_BACKEND", "cpp")
    with pytest.raises(RuntimeError, match="'cpp' was asked for"):
        loss()
    assert calls == []


def test_a_request_for_another_kind_of_device():
    with sf.use_backend("cpp"), pytest.raises(RuntimeError, match="does not run on cuda tensors"):
        registry.choose("cuda")


def test_the_environment_variable(calls, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_BACKEND", "reference")
    loss()
    assert calls == ["reference.score_entropy"]


@needs_cpp
def test_use_backend_outranks_the_environment(calls, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_BACKEND", "reference")
    with sf.use_backend("cpp"):
        loss()
    loss()
    assert calls == ["cpp.score_entropy", "reference.score_entropy"]


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match=r"use_backend.*reference.*cpp.*got 'cuda12'"):  # noqa: SIM117
        with sf.use_backend("cuda12"):
            pass
    monkeypatch.setenv("SEDD_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"SEDD_FAST_BACKEND.*reference.*cpp.*got 'fast'"):
        loss()


@needs_cpp
def test_nesting_and_leaving_on_an_error():
    with sf.use_backend("cpp"):
        with sf.use_backend("reference"):
            assert registry.choose("cpu") == "reference"
        assert registry.choose("cpu") == "cpp"
        with pytest.raises(KeyError), sf.use_backend("reference"):
            raise KeyError
        assert registry.choose("cpu") == "cpp"
    assert registry.requested() is None


@needs_cpp
@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize("inside", ["nothing", "the other"])
def test_backward_runs_on_the_backend_of_its_forward(calls, name, inside):
    """Backward is called outside the block, or inside a block that selects another backend."""
    with sf.use_backend(name):
        value = loss()
    if inside == "nothing":
        value.backward()
    else:
        with sf.use_backend("cpp" if name == "reference" else "reference"):
            value.backward()
    assert calls == [f"{name}.score_entropy", f"{name}.score_entropy_backward"]


def test_a_request_does_not_leak_into_other_threads():
    seen: list[str | None] = []
    entered = threading.Event()

    def other() -> None:
        entered.wait()
        seen.append(registry.requested())
        with sf.use_backend("cpp"):
            seen.append(registry.requested())

    thread = threading.Thread(target=other)
    thread.start()
    with sf.use_backend("reference"):
        entered.set()
        thread.join()
        seen.append(registry.requested())
    assert seen == [None, "cpp", "reference"]


def test_every_backend_of_a_device_is_known():
    for names in registry.PREFERENCE.values():
        assert set(names) <= set(registry.BACKENDS)
        assert "reference" in names
    assert registry.preference("some new device") == ("reference",)


@pytest.mark.parametrize("name", registry.BACKENDS)
def test_every_backend_has_every_operation(name):
    module = registry.module(name)
    assert module.unavailable() is None or isinstance(module.unavailable(), str)
    for op in (
        "sample_transition",
        "score_entropy",
        "score_entropy_backward",
        "score_entropy_with_grad",
        "reverse_step",
        "reverse_probs",
    ):
        assert callable(getattr(module, op))


def test_the_measured_choice_comes_first(monkeypatch):
    """On a GPU of that capability, for that operation, graph, dtype and size, if it runs there."""
    row = choices.Choice((9, 0), "score_entropy", "uniform", "bfloat16", 100, 5000, "cuda")
    monkeypatch.setattr(choices, "MEASURED", (row, row._replace(least=5001, most=None)))
    monkeypatch.setattr(choices, "_capability", lambda device: (9, 0))

    def on_gpu(states: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(2, 3, states, dtype=dtype, device="cuda")

    with FakeTensorMode():
        like, big, small = (on_gpu(n) for n in (300, 90_000, 99))
        single, host = on_gpu(300, torch.float32), torch.empty(2, 3, 300)
    assert choices.measured("score_entropy", "uniform", like) == "cuda"
    assert choices.measured("score_entropy", "uniform", big) == "cuda"
    assert choices.measured("reverse_step", "uniform", like) is None
    assert choices.measured("score_entropy", "absorbing", like) is None
    for unlike in (small, single, host):
        assert choices.measured("score_entropy", "uniform", unlike) is None
    monkeypatch.setattr(registry, "unavailable", lambda backend, device_type="cpu": None)
    assert registry.choose("cuda") == "triton"
    assert registry.choose("cuda", fastest="cuda") == "cuda"
    assert registry.choose("cuda", lambda b: "no" if b == "cuda" else None, "cuda") == "triton"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., torch.Tensor]]:
    """Simulate a GPU on which every backend runs; its tensors have no memory."""
    monkeypatch.setattr(registry, "unavailable", lambda backend, device_type="cpu": None)
    monkeypatch.setattr(choices, "measured", lambda op, graph, like: None)
    monkeypatch.setattr(cuda, "most_states", lambda dtype, device: 14_857_727)
    monkeypatch.setattr(registry, "_warned_of_limits", set())

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        with FakeTensorMode():
            return torch.empty(*shape, dtype=dtype, device="cuda")

    return tensor


@pytest.mark.parametrize(
    ("op", "shape", "reason", "chosen"),
    [
        ("reverse_step", (1, 2, 2**20 + 1), "1,048,576 states.*registers.*got 1,048,577", "cuda"),
        ("reverse_step", (1, 1, 20_000_000), "1,048,576 states.*got 20,000,000", "reference"),
        ("score_entropy", (1, 1, 2**30 + 1), "1,073,741,824 states.*32 bits", "reference"),
        ("score_entropy_with_grad", (2**16, 2**15, 5), "2,147,483,647 positions", "reference"),
        ("row_sums", (2**31, 1, 5), "got 2,147,483,648; split the batch", "reference"),
    ],
)
def test_a_tensor_too_large_for_a_launch_falls_back_with_one_warning(
    on_a_gpu, op, shape, reason, chosen
):
    """It falls back before the launch; a requested backend raises an error instead."""
    like = on_a_gpu(*shape)
    with pytest.warns(
        RuntimeWarning, match=f"runs {op} on .*'{chosen}' backend: 'triton' .*{reason}"
    ):
        run, code = registry.implementation(op, like, "absorbing")
    assert registry.BACKENDS[int(code)] == chosen
    assert run is getattr(registry.module(chosen), op)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.implementation(op, like, "absorbing")
        assert registry.beyond("triton", op, on_a_gpu(2, 3, 50_258)) is None
    wanted = f"'triton' was asked for, but its {op} .*{reason}.*usable here: .*reference"
    with sf.use_backend("triton"), pytest.raises(RuntimeError, match=wanted):
        registry.implementation(op, like, "absorbing")


def test_the_shared_memory_of_a_step_in_cuda(on_a_gpu):
    """The compiled module knows how many states fit; only the step in CUDA has this limit."""
    most = on_a_gpu(1, 1, 14_857_727)
    assert registry.beyond("cuda", "reverse_step", most) is None
    beyond = on_a_gpu(1, 1, 14_857_728)
    reason = registry.beyond("cuda", "reverse_step", beyond)
    assert reason is not None
    assert "at most 14,857,727 states (for torch.bfloat16" in reason
    assert registry.beyond("cuda", "score_entropy", beyond) is None
    with (
        sf.use_backend("cuda"),
        pytest.raises(RuntimeError, match=r"shared memory.*got 14,857,728"),
    ):
        registry.implementation("reverse_step", beyond, "uniform")


def test_too_many_tokens_for_one_launch(on_a_gpu):
    """One program of a launch noises 256 tokens of one sequence."""
    for shape, fits in (((2**12, 2**22), True), ((2**31, 1), False), ((2**24, 2**14), True)):
        reason = triton.unsupported("sample_transition", on_a_gpu(*shape, dtype=torch.int64))
        assert (reason is None) == fits
    assert gpu.MOST_POSITIONS == 2**31 - 1
