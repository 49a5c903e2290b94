"""Which backend runs: requests, fallbacks, the environment, nesting, threads, backward."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sedd_fast as sf
from sedd_fast.backends import choices, cpp, reference, registry

GRAPH = sf.Absorbing(5)
needs_cpp = pytest.mark.skipif(cpp.unavailable() is not None, reason="no C++ kernels here")


@pytest.fixture(autouse=True)
def no_request(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing asked for, nothing remembered."""
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


def test_the_automatic_choice_falls_back_and_says_so_once(no_cpp, calls):
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
def test_nesting_and_leaving_by_an_error():
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
    """Called outside the block, and inside a block that asks for another."""
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
    entered, done = threading.Event(), threading.Event()

    def other() -> None:
        entered.wait(10)
        seen.append(registry.requested())
        with sf.use_backend("cpp"):
            seen.append(registry.requested())
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with sf.use_backend("reference"):
        entered.set()
        assert done.wait(10)
        seen.append(registry.requested())
    thread.join()
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
    """On a GPU of that capability, for that operation, graph, dtype and size; if it runs there."""
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
