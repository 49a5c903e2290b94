"""Builds sedd_fast and its compiled modules; see pyproject.toml for the rest.

``sedd_fast._cpu`` needs a C++17 compiler and neither torch nor any library at build time. Its inner
loops (csrc/cpu/simd/rows.cpp) are compiled once for every instruction set and chosen at run time,
so one build runs on any processor of its kind.

``sedd_fast._cuda`` needs the CUDA toolkit (CUDA_HOME, or nvcc on PATH) and no GPU. It holds machine
code for the architectures of SEDD_FAST_CUDA_ARCHS ("80,90,100"), else for the GPUs that nvidia-smi
reports, and PTX for newer ones. Where there is no GPU either, it holds PTX of compute capability
8.0 alone: it runs on every GPU that the package supports, after the driver has compiled it at first
use.

SEDD_FAST_CPU=0 leaves the first module out, SEDD_FAST_CUDA=0 the second.

Without a compiler the install still succeeds and says, in a line, what is left out.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
EDITABLE = ".editable"
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -Wall -Wextra"
#: Multiplications and additions fuse, as in the C++ kernels; exp is the exact one, never __expf.
NVCC_FLAGS = (
    "-std=c++17 -O3 -fmad=true -prec-div=true -ftz=false -cudart static -Xcompiler "
    "-fPIC,-fvisibility=hidden"
)
#: The least compute capability that the package supports. PTX runs on all later ones.
LEAST_ARCH = 80
#: The C++ names of the types of scores; their kernels are compiled apart, one object a type.
CUDA_TYPES = {"float32": "float", "bfloat16": "BFloat16", "float16": "Half", "float64": "double"}
#: GCC 12 warns of its own AVX-512 intrinsics; clang has no such warning to turn off.
QUIET = "-Wno-uninitialized -Wno-maybe-uninitialized -Wno-unknown-warning-option"
AVX512 = (
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512 " + QUIET
)
X86_SETS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512_bf16": f"{AVX512} -mavx512bf16 -DSEDD_ONLY_BFLOAT16",
}

#: Sources that are compiled once for each.
BY_SET = ("rows", "head")


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_objects(x86: bool, compiler: str) -> dict[str, tuple[str, str]]:
    """Object file -> (source, extra flags), without the bindings; the slowest first."""
    sources = sorted((ROOT / "csrc" / "cpu").rglob("*.cpp"))
    sets = {"baseline": "", **(X86_SETS if x86 else {})}
    if x86 and not accepts(compiler, "-mavx512bf16"):  # GCC before version 10
        del sets["avx512_bf16"]
    define = "-DSEDD_X86" if x86 else ""
    define += " -DSEDD_AVX512_BF16" if "avx512_bf16" in sets else ""
    made = {
        f"{stem}_{name}": (f"csrc/cpu/simd/{stem}.cpp", f"-DSEDD_ISA={name} {flags}")
        for stem in BY_SET
        for name, flags in sets.items()
        if stem == "rows" or "ONLY_BFLOAT16" not in flags
    }
    made |= {s.stem: (str(s.relative_to(ROOT)), define) for s in sources if s.stem not in BY_SET}
    return {f"{name}.o": source for name, source in made.items()}


def accepts(compiler: str, flag: str) -> bool:
    """Whether a C++ compiler knows a flag."""
    command = [*shlex.split(compiler), flag, "-x", "c++", "-E", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def cuda_objects() -> dict[str, tuple[str, str]]:
    """Object file -> (source, extra flags), for nvcc; the slowest first."""
    made = {}
    for op in ("reverse_step", "score_entropy"):
        for name, of in CUDA_TYPES.items():
            made[f"{op}_{name}.o"] = (f"csrc/cuda/{op}.cu", f"-DSEDD_TYPE={of}")
    for name in ("dispatch", "sample_transition"):
        made[f"{name}.o"] = (f"csrc/cuda/{name}.cu", "")
    return made


def includes() -> str:
    import pybind11

    paths = (ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])
    return " ".join(f"-I{shlex.quote(str(path))}" for path in paths)


def rule(name: str, command: str) -> list[str]:
    """A rule of build.ninja that compiles, and learns the headers. ``command`` is for the shell."""
    return [
        f"rule {name}",
        f"  command = {command.replace('$', '$$')} $flags -MMD -MF $out.d -c $in -o $out",
        f"  description = {name} $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def builds(rule_name: str, objects: dict[str, tuple[str, str]]) -> list[str]:
    lines = []
    for name, (source, flags) in objects.items():
        lines += [f"build {name}: {rule_name} {escaped(ROOT / source)}", f"  flags = {flags}"]
    return lines


def linked(command: str, objects: list[str], target: Path) -> str:
    shell = command.replace("$", "$$")
    lines = ["rule link", f"  command = {shell} $in -o $out", "  description = link $out"]
    return "\n".join([*lines, f"build {escaped(target)}: link {' '.join(objects)}", ""])


def cpu_ninja(compiler: str, target: Path) -> str:
    """build.ninja of the CPU module."""
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    objects = {"bindings.o": ("csrc/bindings.cpp", ""), **cpu_objects(is_x86(), compiler)}
    lines = rule("compile", f"{compiler} {FLAGS} {includes()}")
    lines += builds("compile", objects)
    return "\n".join([*lines, linked(f"{compiler} {link} -pthread", list(objects), target)])


def cuda_ninja(compiler: str, nvcc: str, flags: str, target: Path) -> str:
    """build.ninja of the CUDA module: kernels by nvcc, bindings by the C++ compiler."""
    host = f" -ccbin {shlex.quote(compiler)}" if os.environ.get("CXX") else ""
    device = f"{nvcc}{host} {NVCC_FLAGS} {flags}"
    kernels, bindings = cuda_objects(), {"bindings.o": ("csrc/cuda/bindings.cpp", "")}
    lines = rule("nvcc", f"{device} -I{shlex.quote(str(ROOT / 'csrc'))}")
    lines += rule("compile", f"{compiler} {FLAGS} {includes()}")
    lines += builds("compile", bindings) + builds("nvcc", kernels)
    return "\n".join([*lines, linked(f"{device} -shared", [*bindings, *kernels], target)])


class CudaTargets(NamedTuple):
    """What the CUDA kernels are compiled for.

    Attributes:
        machine: architectures that get machine code, as "90".
        ptx: the architecture that gets PTX, which later ones can run.
        reason: why these, in words.
    """

    machine: list[str]
    ptx: str
    reason: str

    def flags(self) -> str:
        """Options of nvcc."""
        codes = [(arch, f"sm_{arch}") for arch in self.machine]
        codes.append((self.ptx, f"compute_{self.ptx}"))
        return " ".join(f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes)

    def __str__(self) -> str:
        return ", ".join([*(f"sm_{arch}" for arch in self.machine), f"PTX {self.ptx}"])


def cuda_targets(nvcc: str) -> CudaTargets:
    """Targets that were asked for, else those of this machine's GPUs, else PTX that all can run."""
    asked = os.environ.get("SEDD_FAST_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    if asked:
        newest = max(asked, key=lambda arch: int(arch.rstrip("af")))
        return CudaTargets(asked, newest, "from SEDD_FAST_CUDA_ARCHS")
    known = known_archs(nvcc)
    gpus = [arch for arch in gpu_archs() if arch >= min(known, default=LEAST_ARCH)]
    if not gpus:
        least = min((arch for arch in known if arch >= LEAST_ARCH), default=LEAST_ARCH)
        reason = (
            "nvidia-smi reports no GPU that nvcc knows; the driver compiles PTX at first use, nvcc "
            "with SEDD_FAST_CUDA_ARCHS=90 for one architecture now"
        )
        return CudaTargets([], str(least), reason)
    machine = [arch for arch in gpus if arch in known]
    unknown = [arch for arch in gpus if arch not in known]
    # A GPU that is newer than the toolkit runs PTX of the newest architecture before it.
    ptx = max((a for a in known if a < unknown[0]), default=LEAST_ARCH) if unknown else machine[-1]
    return CudaTargets([str(arch) for arch in machine], str(ptx), "for the GPUs of this machine")


def gpu_archs() -> list[int]:
    """Compute capabilities of this machine's GPUs, times ten, in ascending order."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = re.findall(r"^(\d+)\.(\d)$", done.stdout, re.MULTILINE)
    return sorted({int(major + minor) for major, minor in found})


def known_archs(nvcc: str) -> set[int]:
    """Architectures that the toolkit compiles for; none where nvcc cannot tell."""
    command = [*shlex.split(nvcc), "--list-gpu-arch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {int(arch) for arch in re.findall(r"^compute_(\d+)$", done.stdout, re.MULTILINE)}


def torch_without_cuda() -> bool:
    """Whether torch is installed, and was built without CUDA; it is found but not imported.

    pip builds in an environment of its own, from which sys.path does not lead to the torch that is
    installed, but the paths of sysconfig do.
    """
    paths = [*sys.path, *map(sysconfig.get_path, ("purelib", "platlib"))]
    torch = PathFinder.find_spec("torch", paths)
    for folder in (torch and torch.submodule_search_locations) or ():
        with suppress(OSError):
            return runpy.run_path(str(Path(folder) / "version.py")).get("cuda", "") is None
    return False


def find_nvcc() -> str | None:
    """The compiler of CUDA_HOME, else that on PATH."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    return shlex.quote(found) if found else None


def escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def find_compiler() -> str | None:
    """CXX, else the first C++ compiler on PATH."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(shlex.split(name)[0])), None)


def find_ninja() -> str | None:
    """That of the Python package, else that on PATH."""
    try:
        import ninja

        own = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        own = None
    return own or shutil.which("ninja")


class BuildKernels(build_ext):
    """Compiles with ninja; leaves a module out, with one line, where that cannot be done."""

    def build_extension(self, ext: Extension) -> None:
        gpu = ext.name.endswith("_cuda")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        if os.environ.get("SEDD_FAST_CUDA" if gpu else "SEDD_FAST_CPU", "1") == "0":
            target.unlink(missing_ok=True)  # of an earlier build
        elif reason := self.failure(gpu, target):
            target.unlink(missing_ok=True)
            self.leave_out(gpu, reason)

    def failure(self, gpu: bool, target: Path) -> str | None:
        """Build a module; why that cannot be done, or None."""
        found = {"a C++ compiler": find_compiler(), "ninja": find_ninja()}
        if gpu:
            asked = any(map(os.environ.get, ("SEDD_FAST_CUDA", "SEDD_FAST_CUDA_ARCHS")))
            if not asked and torch_without_cuda():
                return "torch is installed without CUDA (SEDD_FAST_CUDA=1 compiles them even so)"
            found["nvcc (the CUDA toolkit; set CUDA_HOME)"] = find_nvcc()
        if missing := [name for name, path in found.items() if path is None]:
            return f"there is no {missing[0].removeprefix('a ')}"
        compiler, ninja, *nvcc = found.values()
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / ("cuda" if gpu else "cpu")
        work.mkdir(parents=True, exist_ok=True)
        if gpu:
            targets = cuda_targets(*nvcc)
            print(f"sedd_fast: CUDA kernels for {targets} ({targets.reason})", flush=True)
            text = cuda_ninja(compiler, *nvcc, targets.flags(), target)
        else:
            text = cpu_ninja(compiler, target)
        (work / "build.ninja").write_text(text)
        # Its output is not captured: a line for each object, and what a compiler prints.
        done = subprocess.run([ninja], cwd=work, check=False)
        return "they did not compile (output above)" if done.returncode else None

    def leave_out(self, gpu: bool, reason: str) -> None:
        instead = (
            "GPUs run on Triton or the reference backend."
            if gpu
            else "everything runs on the slower reference backend. Install g++ or clang++ and run "
            "pip install again."
        )
        kernels = "CUDA" if gpu else "C++"
        print(
            f"sedd_fast: the {kernels} kernels are left out: {reason}; {instead}", file=sys.stderr
        )

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


class EditableWheel(editable_wheel):
    """An entry of sys.path that leads to the package, in place of setuptools' import hook.

    The entry is not the checkout, where kernels/, tests/ and benchmarks/ would become importable.
    """

    def run(self) -> None:
        with suppress(OSError):  # without symbolic links the hook remains
            link(ROOT / "sedd_fast" / "kernels", "../kernels")
            link(ROOT / EDITABLE / "sedd_fast", "../sedd_fast")
            self.package_dir = {"": EDITABLE}
        super().run()


def link(path: Path, target: str) -> None:
    """Make a symbolic link, in place of one that is there."""
    path.parent.mkdir(exist_ok=True)
    if path.is_symlink():
        path.unlink()
    path.symlink_to(target, target_is_directory=True)


setup(
    packages=sorted({*find_packages(include=["sedd_fast", "sedd_fast.*"]), "sedd_fast.kernels"}),
    package_dir={"sedd_fast.kernels": "kernels"},
    package_data={"sedd_fast": ["py.typed", "training/presets/*.yaml", "text/python_help/*"]},
    ext_modules=[
        Extension(f"sedd_fast.{name}", sources=[], optional=True) for name in ("_cpu", "_cuda")
    ],
    cmdclass={"build_ext": BuildKernels, "editable_wheel": EditableWheel},
)
