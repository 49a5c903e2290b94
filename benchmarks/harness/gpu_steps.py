"""What ``on_gpu.py`` runs: the steps, their limits, and the plans that order them.

A step is a list of Python commands, which run one after the other in the root of the checkout. The
limits of the short plans add up to the plan's minutes; a step of the plan "all" has twice the time
that it is expected to take.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.command import ROOT

#: Processes of the smoke set; most of their time is spent in Python and in compiling.
WORKERS = min(14, os.cpu_count() or 1)
#: The folder of the CUDA toolkit where nvcc is not on PATH.
TOOLKIT = Path("/usr/local/cuda")
#: The status of a build that has no CUDA module: the steps after it are taken nevertheless.
NO_MODULE = 4
CHECK = (
    "import sys, importlib.util as u; found = u.find_spec('sedd_fast._cuda'); "
    "print('CUDA module:', found and found.origin or 'MISSING, the log says why'); "
    f"sys.exit(0 if found else {NO_MODULE})"
)
#: Lets a process return freed memory in small pieces, for the other processes to use.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
PROBE = "import torch; torch.ones(2**26, device='cuda').sum().item()"


@dataclass(frozen=True)
class Command:
    """``python *words`` in the checkout; skipped where the file that it reads does not exist."""

    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    reads: Path | None = None


@dataclass(frozen=True)
class Machine:
    """What a step needs to know to form its commands.

    Attributes:
        capability: of the GPU, as "90".
        part: name of a part of a step -> the JSON file that it writes.
        junit: name of a set of tests -> the file of its report.
        has_allocator: whether memory can be allocated under ALLOCATOR.
    """

    capability: str
    part: Callable[[str], Path]
    junit: Callable[[str], Path]
    has_allocator: Callable[[], bool] = lambda: True


Commands = Callable[[Machine], list[Command]]


@dataclass(frozen=True)
class Step:
    """The limit of a step in seconds, its purpose, and its commands."""

    seconds: int
    purpose: str
    commands: Commands


def build(machine: Machine) -> list[Command]:
    """Build the CUDA module for this GPU; no step needs the CPU module."""
    given = {"SEDD_FAST_CUDA_ARCHS": machine.capability, "SEDD_FAST_CPU": "0"}
    if shutil.which("nvcc") is None and (TOOLKIT / "bin" / "nvcc").is_file():
        given["CUDA_HOME"] = str(TOOLKIT)
    given |= {name: os.environ[name] for name in given if name in os.environ}
    # Verbose: setup.py prints there why it left a module out.
    install = ("-m", "pip", "install", "-v", "--disable-pip-version-check")
    return [
        Command((*install, "--no-build-isolation", "--no-deps", "-e", "."), given),
        Command(("-c", "import sedd_fast; print(sedd_fast.info())")),
        Command(("-c", CHECK)),
    ]


def pytest(machine: Machine, name: str, select: str, *rest: str) -> Command:
    """Tests of the operations, with a JUnit report."""
    words = ("-m", "pytest", "--tb=short", "-m", select, f"--junitxml={machine.junit(name)}")
    quiet = ("-o", "junit_logging=no", "-p", "no:cacheprovider")
    environment = {"OMP_NUM_THREADS": "1", **(ALLOCATOR if machine.has_allocator() else {})}
    return Command((*words, *quiet, *rest), environment)


def shared(workers: int) -> tuple[str, ...]:
    """Options of pytest-xdist: neighbouring tests launch the same kernels and share a process."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-n", str(workers), "--dist", "worksteal")


def smoke(machine: Machine) -> list[Command]:
    """The smoke set. Verbose, so that an interrupted log shows which tests have passed."""
    rest = ("-v", "--maxfail=60", "--durations=10", *shared(WORKERS), "tests/ops")
    return [pytest(machine, "smoke", "gpu and smoke", *rest)]


def tests(machine: Machine) -> list[Command]:
    """All tests but the slow ones. A broken kernel fails thousands of them: fifty suffice."""
    rest = ("-q", "--maxfail=50", "--durations=10", *shared(min(8, WORKERS)), "tests/ops")
    return [pytest(machine, "tests", "gpu and not slow", *rest)]


def sanitizer(machine: Machine) -> list[Command]:
    """compute-sanitizer's memcheck and racecheck of both backends."""
    return [pytest(machine, "sanitizer", "gpu and slow", "-q", "tests/ops/test_gpu_safety.py")]


def memcheck(machine: Machine) -> list[Command]:
    """compute-sanitizer's memcheck of the CUDA backend."""
    only = "tests/ops/test_gpu_safety.py::test_compute_sanitizer_finds_nothing[cuda-memcheck]"
    return [pytest(machine, "memcheck", "gpu and slow", "-q", "-rs", only)]


def suite(names: str, seconds: str, *rest: str) -> Commands:
    """Suites of run.py; each of their cases is measured for that many seconds."""

    def commands(machine: Machine) -> list[Command]:
        words = (str(ROOT / "benchmarks" / "run.py"), "--device", "cuda", "--suite", names)
        file = str(machine.part(names.replace(",", "-")))
        return [Command((*words, "--seconds", seconds, *rest, "--json", file))]

    return commands


def operations(*rest: str, dtype: str = "bf16") -> Commands:
    """The operations, half of whose positions are noised."""
    return suite("ops", "1", "--dtype", dtype, "--masked", "0.5", *rest)


def study(name: str, *rest: str) -> tuple[str, ...]:
    """A script of benchmarks/studies."""
    return ("-m", f"benchmarks.studies.{name}", *rest)


def figures(name: str) -> Commands:
    """A study that writes --json."""
    return lambda machine: [Command(study(name, "--json", str(machine.part(name))))]


def then_choices(measured: Commands) -> Commands:
    """A suite, then the rows of sedd_fast/backends/choices.py that follow from its result."""

    def commands(machine: Machine) -> list[Command]:
        (first,) = measured(machine)
        file = first.words[-1]
        return [first, Command(study("choices", file), reads=Path(file))]

    return commands


#: The two parts of the suite "head", by the titles of their tables.
SCORE_HEAD = ("--operations", "head, loss + gradients; head, analytic step")
SOFTMAX_HEAD = (
    "--operations",
    "cross entropy, loss + gradients; denoise, all but the embedding; denoise, token alone",
)


def head(machine: Machine) -> list[Command]:
    """The head of scores, then the widths of its blocks and the replay of a CUDA graph."""
    measured = then_choices(suite("head", "2", "--no-compile", *SCORE_HEAD))(machine)
    return [*measured, *figures("head_blocks")(machine)]


STEPS: dict[str, Step] = {
    "build": Step(60, "build for this GPU", build),
    "smoke": Step(150, "tests that touch everything once", smoke),
    "ops": Step(120, "operations in bf16, no torch.compile", operations("--no-compile")),
    "settings": Step(150, "settings of the row kernels", figures("row_settings")),
    "profile": Step(60, "ceilings, kernels by time", figures("gpu_profile")),
    "counters": Step(90, "counters of the kernels (ncu)", figures("counters")),
    "head": Step(120, "head, widths of its blocks, graph replay", head),
    "memcheck": Step(140, "compute-sanitizer, CUDA backend", memcheck),
    "generation": Step(180, "generation: SEDD-small, GPT-2-small", figures("generation")),
    "compiled": Step(240, "operations in bf16 with torch.compile", operations()),
    "rivals": Step(200, "head against torch.compile and others", suite("head", "2", *SCORE_HEAD)),
    "softmax": Step(
        240, "cross entropy and denoising against others", suite("head", "1", *SOFTMAX_HEAD)
    ),
    "batch": Step(180, "largest batch of SEDD-small, tokens a second", figures("largest_batch")),
    "small": Step(180, "SEDD-small, one sequence", suite("small", "3")),
    "fp32": Step(120, "operations in fp32", operations("--no-compile", dtype="fp32")),
    "tests": Step(560, "all GPU tests", tests),
    "sweep": Step(560, "over vocabularies and noise", then_choices(suite("sweep", "0.5"))),
    "runs": Step(300, "training step, sampling run", suite("train,sample", "4")),
    "sanitizer": Step(560, "compute-sanitizer, all", sanitizer),
}
PLANS: dict[str, tuple[str, ...]] = {
    "first": ("build", "smoke", "ops"),
    "tune": ("profile", "settings", "counters", "head", "memcheck"),
    "compare": ("generation", "compiled", "rivals", "softmax", "batch", "small", "fp32"),
    "all": ("build", "tests", "compiled", "head", "softmax", "batch", "sweep", "runs", "sanitizer"),
}
