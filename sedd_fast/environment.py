"""A report of the machine and of the backends that the package uses on it.

print(sf.info())              # the report as text
sf.info().as_dict()           # the same for JSON
sf.reuse_memory()             # opt in: large tensors keep their memory pages
"""

import functools
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sedd_fast.backends import cpp, registry
from sedd_fast.extras import missing_libraries, pip_install
from sedd_fast.version import __version__

#: Names in /proc/cpuinfo -> those printed; the first two on x86-64, the others on Arm.
MODEL_NUMBERS = {
    "cpu family": "family",
    "model": "model",
    "CPU implementer": "implementer",
    "CPU part": "part",
}


@dataclass(frozen=True)
class Backend:
    """One backend on one kind of device. `reason` says why it is not available."""

    name: str
    available: bool
    chosen: bool
    reason: str | None

    def __str__(self) -> str:
        state = "chosen" if self.chosen else "available"
        return f"backend {self.name}: {state if self.available else f'no, {self.reason}'}"


@dataclass(frozen=True)
class Device:
    """One kind of device, "cpu" or "cuda".

    Attributes:
        kind: "cpu" or "cuda".
        description: the names of the devices of this kind.
        backends: those that this kind of device may use, the preferred first.
    """

    kind: str
    description: str
    backends: tuple[Backend, ...]


@dataclass(frozen=True)
class Environment:
    """The report. `str` of it is text to read, `as_dict` is for JSON.

    Attributes:
        versions: versions of sedd_fast, Python, torch, numpy.
        system: operating system and architecture.
        devices: the kinds of device that are present, the CPU first.
        missing: kinds of device that are absent -> the reason.
        instruction_set: of the C++ kernels ("avx512_bf16", "avx512", "avx2", "baseline"); None
            without them.
        threads: number of threads of an operation on the CPU; `torch.set_num_threads` sets it.
        pool: the thread pool of the C++ kernels, "shared OpenMP" (torch's) or "own"; None without
            them.
        missing_libraries: extra of the package -> those of its libraries that are not installed;
            Triton only where torch can use it.
        requested: the requested backend (`use_backend`, SEDD_FAST_BACKEND), or None.
        memory_reuse: whether `reuse_memory` is in force.
    """

    versions: dict[str, str]
    system: str
    devices: tuple[Device, ...]
    missing: dict[str, str]
    instruction_set: str | None
    threads: int
    pool: str | None
    missing_libraries: dict[str, list[str]]
    requested: str | None
    memory_reuse: bool

    def as_dict(self) -> dict[str, Any]:
        """The report as dictionaries, lists, strings and numbers, for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("versions", "  ".join(f"{name} {v}" for name, v in self.versions.items()))]
        rows.append(("system", self.system))
        for device in self.devices:
            rows.append((device.kind, device.description))
            if device.kind == "cpu":
                rows.append(("", self._cpu_threads()))
            rows += [("", str(backend)) for backend in device.backends]
        rows += [(kind, f"none: {reason}") for kind, reason in self.missing.items()]
        rows += [
            ("missing", f"{', '.join(names)}: {pip_install(extra)}")
            for extra, names in self.missing_libraries.items()
        ]
        if self.requested:
            rows.append(("requested", f"backend {self.requested}, on every device"))
        reused = "large tensors keep their pages (reuse_memory is on)"
        fresh = "large tensors are fresh pages every time; sedd_fast.reuse_memory() keeps them"
        rows.append(("memory", reused if self.memory_reuse else fresh))
        return "\n".join(f"{label:<10} {text}".rstrip() for label, text in rows)

    def _cpu_threads(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        if self.pool is None:
            return threads
        pools = {"shared OpenMP": "torch's own OpenMP threads, shared", "own": "a pool of its own"}
        return f"{threads} ({pools[self.pool]}), instruction set {self.instruction_set}"


def info() -> Environment:
    """The report of versions, devices and backends: which one is chosen, and why not the others.

    Example:
        >>> print(sedd_fast.info())
        >>> json.dumps(sedd_fast.info().as_dict())
    """
    present, missing = _devices()
    compiled = cpp.unavailable() is None
    libraries = missing_libraries()
    if torch.version.cuda is None and torch.version.hip is None:
        libraries.pop("cuda", None)
    return Environment(
        versions={
            "sedd_fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        system=f"{platform.system()} {platform.machine()}",
        devices=tuple(Device(kind, text, _backends(kind)) for kind, text in present.items()),
        missing=missing,
        instruction_set=cpp.kernels().instruction_set() if compiled else None,
        threads=torch.get_num_threads(),
        pool=cpp.pool() if compiled else None,
        missing_libraries=libraries,
        requested=registry.requested(),
        memory_reuse=memory_is_reused(),
    )


@functools.cache
def reuse_memory() -> bool:
    """Keep the memory of freed tensors in this process, instead of giving it back to the system.

    By default glibc returns every large block immediately, and the next large tensor consists of
    fresh pages that the system must find and zero: on a CPU that can cost more than the arithmetic.
    The switch (mallopt: no mmap, no trimming) holds for the whole process and cannot be undone. It
    takes full effect after some rounds of allocations. The process may hold more memory than its
    tensors need, because small blocks split large ones that were freed. The command line turns the
    switch on.

    Returns:
        True if memory is now reused; False if that is not possible (no C++ kernels, or a C library
        other than glibc).
    """
    return cpp.unavailable() is None and bool(cpp.kernels().reuse_memory())


def memory_is_reused() -> bool:
    """Whether `reuse_memory` or an environment variable of glibc makes the process keep pages."""
    called = reuse_memory.cache_info().currsize > 0 and reuse_memory()
    return called or os.environ.get("MALLOC_MMAP_MAX_") == "0"


def _devices() -> tuple[dict[str, str], dict[str, str]]:
    """Kinds of device that are present -> description; that are absent -> the reason."""
    present = {"cpu": f"{processor_name()}, {os.cpu_count()} logical cores"}
    if torch.version.cuda is None and torch.version.hip is None:
        return present, {"cuda": "this torch was built without CUDA"}
    if not torch.cuda.is_available():
        return present, {"cuda": "torch finds no usable GPU or driver"}
    names = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    present["cuda"] = ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in names)
    return present, {}


def processor_name() -> str:
    """The processor's name according to Linux; where it has no number, as under many hypervisors,
    with the numbers that Linux gives for the model: "AMD EPYC (family 25, model 17)".
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    first = text.partition("\n\n")[0]
    found = dict(re.findall(r"^([\w ]+?)\s*:[ \t]*(\S.*)$", first, re.MULTILINE))
    named = found.get("model name", "")
    name = named or platform.processor() or platform.machine()
    numbers = [f"{label} {found[key]}" for key, label in MODEL_NUMBERS.items() if key in found]
    return name if re.search(r"\d", named) or not numbers else f"{name} ({', '.join(numbers)})"


def _backends(kind: str) -> tuple[Backend, ...]:
    reasons = {name: registry.unavailable(name, kind) for name in registry.preference(kind)}
    chosen = registry.requested() or next(n for n, reason in reasons.items() if reason is None)
    return tuple(
        Backend(name, reason is None, reason is None and name == chosen, reason)
        for name, reason in reasons.items()
    )
