"""What ``on_gpu.py`` runs: the steps, their limits, and the plans that order them.

A step is some commands of Python, run one after the other in the checkout. One of a plan of
minutes has a limit that fits the plan; those of the plan "all" have twice what is expected.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
#: Processes of the smoke set, of 16 cores: most of their time is Python and compiling.
WORKERS = min(14, os.cpu_count() or 1)
#: Where CUDA's toolkit is if nvcc is not on PATH.
TOOLKIT = Path("/usr/local/cuda")
#: The status of a build that has no CUDA module: the steps after it are taken all the same.
NO_MODULE = 4
CHECK = (
    "import sys, importlib.util as u; found = u.find_spec('sedd_fast._cuda'); "
    "print('CUDA module:', found and found.origin or 'MISSING, the log says why'); "
    f"sys.exit(0 if found else {NO_MODULE})"
)
#: Memory that a process frees goes back in pieces, and other processes can take it.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
PROBE = "import torch; torch.ones(2**26, device='cuda').sum().item()"


@dataclass(frozen=True)
class Command:
    """``python *words`` in the checkout; left out where the file that it reads is not there."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    reads: Path | None = None


@dataclass(frozen=True)
class Machine:
    """The GPU's capability ("90"), and where a step writes: ``part("ops")`` is a JSON file.

    ``has_allocator``: whether memory can be allocated under ALLOCATOR there.
    """

    capability: str
    part: Callable[[str], Path]
    junit: Callable[[str], Path]
    has_allocator: Callable[[], bool] = lambda: True


Commands = Callable[[Machine], list[Command]]


@dataclass(frozen=True)
class Step:
    """Seconds after which it is given up, what it is for, and its commands."""

    seconds: int
    purpose: str
    commands: Commands


def build(machine: Machine) -> list[Command]:
    """The CUDA module for this GPU; no step needs that of the CPU."""
    given = {"SEDD_FAST_CUDA_ARCHS": machine.capability, "SEDD_FAST_CPU": "0"}
    if shutil.which("nvcc") is None and (TOOLKIT / "bin" / "nvcc").is_file():
        given["CUDA_HOME"] = str(TOOLKIT)
    given |= {name: os.environ[name] for name in given if name in os.environ}
    # Verbose: setup.py says there why it left a module out.
    install = ("-m", "pip", "install", "-v", "--disable-pip-version-check")
    return [
        Command((*install, "--no-build-isolation", "--no-deps", "-e", "."), given),
        Command(("-c", "import sedd_fast; print(sedd_fast.info())")),
        Command(("-c", CHECK)),
    ]


def pytest(machine: Machine, name: str, select: str, *rest: str) -> Command:
    """Tests of the operations, with a report that outlives what they print."""
    words = ("-m", "pytest", "--tb=short", "-m", select, f"--junitxml={machine.junit(name)}")
    quiet = ("-o", "junit_logging=no", "-p", "no:cacheprovider")
    environment = {"OMP_NUM_THREADS": "1", **(ALLOCATOR if machine.has_allocator() else {})}
    return Command((*words, *quiet, *rest), environment)


def shared(workers: int) -> tuple[str, ...]:
    """Neighbouring tests, which launch the same kernels, to one process; idle ones take some."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(workers), "--dist", "worksteal")


def smoke(machine: Machine) -> list[Command]:
    """Verbose: what has passed by then is in the log, should the machine go away."""
    rest = ("-v", "--maxfail=60", "--durations=10", *shared(WORKERS), "tests/ops")
    return [pytest(machine, "smoke", "gpu and smoke", *rest)]


def tests(machine: Machine) -> list[Command]:
    """A broken kernel fails thousands of tests alike: fifty say it, and leave time for the rest."""
    rest = ("-q", "--maxfail=50", "--durations=10", *shared(min(8, WORKERS)), "tests/ops")
    return [pytest(machine, "tests", "gpu and not slow", *rest)]


def sanitizer(machine: Machine) -> list[Command]:
    """memcheck and racecheck of both backends."""
    return [pytest(machine, "sanitizer", "gpu and slow", "-q", "tests/ops/test_gpu_safety.py")]


def memcheck(machine: Machine) -> list[Command]:
    """That of the CUDA backend."""
    only = "tests/ops/test_gpu_safety.py::test_compute_sanitizer_finds_nothing[cuda-memcheck]"
    return [pytest(machine, "memcheck", "gpu and slow", "-q", "-rs", only)]


def suite(names: str, seconds: str, *rest: str) -> Commands:
    """Suites of run.py, their cases measured for that many seconds each."""

    def commands(machine: Machine) -> list[Command]:
        words = (str(BENCHMARKS / "run.py"), "--device", "cuda", "--suite", names)
        file = str(machine.part(names.replace(",", "-")))
        return [Command((*words, "--seconds", seconds, *rest, "--json", file))]

    return commands


def script(name: str, *rest: str) -> Commands:
    """Another benchmark, which writes --json."""

    def commands(machine: Machine) -> list[Command]:
        file = str(machine.part(name.removesuffix(".py")))
        return [Command((str(BENCHMARKS / name), *rest, "--json", file))]

    return commands


def then_choices(measured: Commands) -> Commands:
    """The rows that a suite makes for the choice of backends, too."""

    def commands(machine: Machine) -> list[Command]:
        (first,) = measured(machine)
        file = first.words[-1]
        return [first, Command((str(BENCHMARKS / "choices.py"), file), reads=Path(file))]

    return commands


def head(machine: Machine) -> list[Command]:
    """The suite, then the widths of its blocks and a replay of a CUDA graph."""
    measured = then_choices(suite("head", "2", "--no-compile"))(machine)
    return [*measured, *script("head_blocks.py")(machine)]


STEPS: dict[str, Step] = {
    "build": Step(60, "build for this GPU", build),
    "smoke": Step(150, "tests that touch everything once", smoke),
    "ops": Step(
        120,
        "operations, no torch.compile",
        suite("ops", "1", "--no-compile", "--dtype", "bf16,fp32"),
    ),
    "settings": Step(150, "settings of the row kernels", script("row_settings.py")),
    "head": Step(120, "head, widths of its blocks, graph replay", head),
    "counters": Step(140, "counters of the kernels (ncu)", script("counters.py")),
    "memcheck": Step(140, "compute-sanitizer, CUDA backend", memcheck),
    "rivals": Step(200, "head against torch.compile and others", suite("head", "2")),
    "small": Step(180, "SEDD-small: training step, sampling", suite("small", "3")),
    "compiled": Step(240, "operations with torch.compile", suite("ops", "1")),
    "batch": Step(240, "largest batch of SEDD-small", script("largest_batch.py")),
    "tests": Step(560, "all GPU tests", tests),
    "sweep": Step(560, "over vocabularies and noise", then_choices(suite("sweep", "0.5"))),
    "runs": Step(300, "training step, sampling run", suite("train,sample", "4")),
    "sanitizer": Step(560, "compute-sanitizer, all", sanitizer),
}
PLANS: dict[str, tuple[str, ...]] = {
    "first": ("build", "smoke", "ops"),
    "tune": ("settings", "head", "counters", "memcheck"),
    "compare": ("rivals", "small", "compiled", "batch"),
    "all": ("build", "tests", "compiled", "head", "batch", "sweep", "runs", "sanitizer"),
}
