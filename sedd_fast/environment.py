"""What the package finds on a machine, and which backend it therefore uses.

print(sf.info())              # a report to read
sf.info().as_dict()           # the same for JSON
sf.reuse_memory()             # opt in: large tensors keep their memory pages
"""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sedd_fast.backends import cpp, registry
from sedd_fast.version import __version__

_LABEL = 10  # columns before the text of a report's line


@dataclass(frozen=True)
class Backend:
    """One backend on one kind of device. `reason` says why it is not available."""

    name: str
    available: bool
    chosen: bool
    reason: str | None


@dataclass(frozen=True)
class Device:
    """One kind of device: "cpu" or "cuda", what it is, and its backends, the preferred first."""

    kind: str
    description: str
    backends: tuple[Backend, ...]


@dataclass(frozen=True)
class Environment:
    """The report. `str` of it is for people, `as_dict` for JSON.

    Attributes:
        versions: of sedd_fast, Python, torch, numpy.
        system: operating system and architecture.
        devices: those present, the CPU first.
        missing: kinds of device that are not there -> why.
        instruction_set: what the C++ kernels run on ("avx512", "avx2", "baseline"); None without.
        threads: of an operation on the CPU; `torch.set_num_threads` sets it.
        pool: whose threads these are, "shared OpenMP" (torch's) or "own"; None without C++ kernels.
        requested: the backend asked for (`use_backend`, SEDD_FAST_BACKEND), or None.
        memory_reuse: whether `reuse_memory` is in force.
    """

    versions: dict[str, str]
    system: str
    devices: tuple[Device, ...]
    missing: dict[str, str]
    instruction_set: str | None
    threads: int
    pool: str | None
    requested: str | None
    memory_reuse: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `json.dumps` takes it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [_line("versions", "  ".join(f"{k} {v}" for k, v in self.versions.items()))]
        lines.append(_line("system", self.system))
        for device in self.devices:
            lines.append(_line(device.kind, device.description))
            if device.kind == "cpu":
                lines.append(_line("", self._cpu_threads()))
            lines += [_line("", _backend_line(backend)) for backend in device.backends]
        lines += [_line(kind, f"none: {reason}") for kind, reason in self.missing.items()]
        if self.requested:
            lines.append(_line("asked for", f"backend {self.requested}, on every device"))
        lines.append(_line("memory", self._memory()))
        return "\n".join(lines)

    def _cpu_threads(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        if self.pool is None:
            return threads
        whose = {"shared OpenMP": "torch's own OpenMP threads, shared", "own": "a pool of its own"}
        return f"{threads} ({whose[self.pool]}), instruction set {self.instruction_set}"

    def _memory(self) -> str:
        if self.memory_reuse:
            return "large tensors keep their pages (reuse_memory is on)"
        return "large tensors are fresh pages every time; sedd_fast.reuse_memory() keeps them"


def info() -> Environment:
    """What is installed, which devices and backends there are, which is chosen, and why not others.

    Example:
        >>> print(sedd_fast.info())
        >>> json.dumps(sedd_fast.info().as_dict())
    """
    here, missing = _devices()
    compiled = cpp.unavailable() is None
    return Environment(
        versions={
            "sedd_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        system=f"{platform.system()} {platform.machine()}",
        devices=tuple(Device(kind, text, _backends(kind)) for kind, text in here.items()),
        missing=missing,
        instruction_set=cpp.kernels().instruction_set() if compiled else None,
        threads=torch.get_num_threads(),
        pool=cpp.pool() if compiled else None,
        requested=registry.requested(),
        memory_reuse=memory_is_reused(),
    )


@functools.cache
def reuse_memory() -> bool:
    """Keep the memory of freed tensors in this process, instead of giving it back to the system.

    By default glibc returns every large block at once, and the next large tensor is fresh pages
    that the system must find and zero: on a CPU that can cost more than the arithmetic. The switch
    (mallopt: no mmap, no trimming) holds for the whole process and cannot be undone. It takes some
    rounds of allocations to settle, and the process may hold more than its tensors need: small
    blocks split large ones that were freed. The command line turns it on.

    Returns:
        True where it is now in force; False where it cannot be had (no C++ kernels, or a C library
        other than glibc).
    """
    return cpp.unavailable() is None and bool(cpp.kernels().reuse_memory())


def memory_is_reused() -> bool:
    """Whether `reuse_memory` is in force, or glibc was told the same by the environment."""
    called = reuse_memory.cache_info().currsize > 0 and reuse_memory()
    return called or os.environ.get("MALLOC_MMAP_MAX_") == "0"


def _devices() -> tuple[dict[str, str], dict[str, str]]:
    """Kinds of device that are here -> description; that are not -> why."""
    here = {"cpu": f"{_processor()}, {os.cpu_count()} logical cores"}
    if torch.version.cuda is None and torch.version.hip is None:
        return here, {"cuda": "this torch was built without CUDA"}
    if not torch.cuda.is_available():
        return here, {"cuda": "torch finds no usable GPU or driver"}
    names = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    here["cuda"] = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
    return here, {}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return next(iter(names), "") or platform.processor() or platform.machine()


def _backends(kind: str) -> tuple[Backend, ...]:
    names = registry.preference(kind)
    reasons = {name: registry.unavailable(name, kind) for name in names}
    usable = [name for name in names if reasons[name] is None]
    chosen = registry.requested() or usable[0]
    return tuple(
        Backend(name, name in usable, name == chosen and name in usable, reasons[name])
        for name in names
    )


def _backend_line(backend: Backend) -> str:
    state = "chosen" if backend.chosen else "available"
    return f"backend {backend.name}: {state if backend.available else f'no, {backend.reason}'}"


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}} {text}".rstrip()
