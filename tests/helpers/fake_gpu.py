"""A simulated GPU that compiles kernels and runs none, to rehearse GPU tests without a GPU.

    PYTHONOPTIMIZE=1 PYTHONPATH=tests python -m pytest -p helpers.fake_gpu \
        --assert=plain tests/ops -m "gpu and smoke" --kernels kernels.json

torch reports an H100. Tensors on it are made on the CPU. A launch of a Triton kernel compiles it
for that GPU (with ``--only-list`` it only records it) and leaves its results zero.
PYTHONOPTIMIZE=1 removes the assertions, which would stop a test at its first launch. A test then
shows that its Python runs up to every launch, and that every kernel compiles. ``--kernels FILE``
receives a record for each kernel: its name, seconds, and the tests that launch it.
"""

import hashlib
import importlib
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

CAPABILITY = (9, 0)
SHARED_MEMORY = 227 << 10
NAME = "NVIDIA H100 80GB HBM3"


class OnCpu(TorchFunctionMode):
    """Make every tensor for a CUDA device on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: _on_cpu(value) for key, value in (kwargs or {}).items()}
        return func(*(_on_cpu(value) for value in args), **kwargs)


def _on_cpu(value: Any) -> Any:
    is_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return "cpu" if is_cuda else value


class Launches:
    """The kernels launched, the tests that launch them, and the seconds of their compilation."""

    def __init__(self) -> None:
        self.test = ""
        self.tests: dict[str, list[str]] = defaultdict(list)
        self.seconds: dict[str, float] = {}

    def add(self, kernel: str, compiles: Callable[[], object] | None) -> None:
        """Record a launch of ``kernel`` by the current test; the first launch compiles it."""
        if self.test not in self.tests[kernel]:
            self.tests[kernel].append(self.test)
        if compiles is not None and kernel not in self.seconds:
            started = time.process_time() + _children()
            compiles()
            self.seconds[kernel] = round(time.process_time() + _children() - started, 3)

    def write(self, path: Path) -> None:
        records = [
            {"kernel": kernel, "seconds": self.seconds.get(kernel), "tests": tests}
            for kernel, tests in self.tests.items()
        ]
        path.write_text(json.dumps(records, indent=1) + "\n")


def _children() -> float:
    """Processor seconds of child processes that have ended (ptxas)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


LAUNCHES = Launches()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", type=Path, help="write the kernels that were launched")
    parser.addoption("--only-list", action="store_true", help="list kernels, compile none")


def pytest_configure(config: pytest.Config) -> None:
    replace_driver(not config.getoption("--only-list"))
    accept_cpu_tensors()
    touch_every_row()
    accept_zeros()
    OnCpu().__enter__()


def pytest_runtest_setup(item: pytest.Item) -> None:
    LAUNCHES.test = item.nodeid


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--kernels"):
        LAUNCHES.write(path)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total = sum(LAUNCHES.seconds.values())
    terminalreporter.write_line(
        f"{len(LAUNCHES.tests)} kernels launched, {len(LAUNCHES.seconds)} compiled in {total:.0f} s"
    )


def replace_torch_cuda() -> None:
    """Make torch.cuda report one H100, whose streams, events and graphs do nothing."""
    major, minor = CAPABILITY
    properties = mock.MagicMock(
        major=major, minor=minor, shared_memory_per_block_optin=SHARED_MEMORY
    )
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": NAME,
        "get_device_capability": CAPABILITY, "get_device_properties": properties,
        "mem_get_info": (8 << 30, 80 << 30), "memory_stats": defaultdict(int),
        "is_current_stream_capturing": False, "memory_reserved": 0,
    }  # fmt: skip
    nothing = (
        "synchronize", "empty_cache", "_sleep", "reset_peak_memory_stats", "stream", "Stream",
        "current_stream", "CUDAGraph", "graph", "Event", "set_sync_debug_mode", "device",
    )  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in nothing:
        setattr(torch.cuda, name, mock.MagicMock())
    autocast = torch.autocast
    torch.autocast = lambda device, *rest, **given: autocast("cpu", *rest, **given)
    torch.Generator = _generator(torch.Generator)
    for name, zeros in (("empty", torch.zeros), ("empty_like", torch.zeros_like)):
        setattr(torch, name, zeros)
    torch.Tensor.new_empty = torch.Tensor.new_zeros


def _generator(original: Any) -> Any:
    """A torch.Generator that is always on the CPU."""

    class Generator(original):
        def __new__(cls, device: object = "cpu") -> Any:
            return original.__new__(original, "cpu")

    return Generator


def replace_driver(compiles: bool) -> None:
    """Give Triton a driver with the target of CAPABILITY; a launch compiles only."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    major, minor = CAPABILITY
    active = mock.MagicMock()
    active.get_current_target.return_value = GPUTarget("cuda", 10 * major + minor, 32)
    active.get_current_device.return_value = 0
    driver.set_active(active)
    original = JITFunction._do_compile

    def compile_only(this: Any, key: str, *rest: Any) -> None:
        """Compile, and return no kernel, so that nothing is launched."""
        short = hashlib.sha256(str(key).encode()).hexdigest()[:12]
        name = f"{this.__name__}-{short}"
        LAUNCHES.add(name, (lambda: original(this, key, *rest)) if compiles else None)
        this.device_caches[0][0].clear()

    JITFunction._do_compile = compile_only


def accept_cpu_tensors() -> None:
    """Let every backend accept CPU tensors; the CUDA backend gets a module that does nothing."""
    sys.modules.setdefault("sedd_fast._cuda", mock.MagicMock())
    from sedd_fast.backends import registry, values

    registry.unavailable = lambda backend, device_type="cpu": None
    values.enabled = lambda device: os.environ.get("SEDD_FAST_CHECK") == "1"


def touch_every_row() -> None:
    """Let every row have a loss.

    Launches that compute nothing would find no such row, and a head without rows launches no more.
    """
    head = importlib.import_module("sedd_fast.backends.triton.linear_score_entropy")
    original = head.touched

    def touched(process: Any) -> torch.Tensor:
        original(process)
        return torch.arange(process.x_t.numel())

    head.touched = touched


def accept_zeros() -> None:
    """Disable the functions that raise an AssertionError; conftest.py has imported op_cases."""
    torch.testing.assert_close = lambda *_, **__: None
    if cases := sys.modules.get("helpers.op_cases"):
        cases.assert_near = lambda *_, **__: None


replace_torch_cuda()  # at import, because conftest.py looks for a GPU before any hook is called
