"""Builds sedd_fast and its compiled modules; see pyproject.toml for the rest.

``sedd_fast._cpu`` needs a C++17 compiler and neither torch nor any library at build time. Its inner
loops (csrc/cpu/simd) are compiled once for every instruction set and chosen at run time, so one
build runs on any processor of its kind.

``sedd_fast._cuda`` needs the CUDA toolkit (CUDA_HOME, or nvcc on PATH) and no GPU. It holds code
for the GPUs of SEDD_FAST_CUDA_ARCHS ("80,90,100,120" by default, as far as the toolkit knows them;
"90" builds fastest) and PTX of the newest.

SEDD_FAST_CPU=0 leaves the first module out, SEDD_FAST_CUDA=0 the second.

Without a compiler the install still succeeds and says, in a line, what is left out.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -Wall -Wextra"
#: The vector types that lanes.h passes between inlined functions have no stable ABI, and need none.
QUIET = "-Wno-psabi -Wno-unknown-warning-option -Wno-maybe-uninitialized -Wno-uninitialized"
#: Multiplications and additions fuse, as in the C++ kernels; exp is the exact one, never __expf.
NVCC_FLAGS = (
    "-std=c++17 -O3 -fmad=true -prec-div=true -ftz=false -cudart static -Xcompiler "
    "-fPIC,-fvisibility=hidden"
)
CUDA_ARCHS = ("80", "90", "100", "120")
#: The C++ names of the types of scores; their kernels are compiled apart, one object a type.
CUDA_TYPES = {"float32": "float", "bfloat16": "BFloat16", "float16": "Half", "float64": "double"}
#: The files of csrc/cpu/simd that are compiled once for every instruction set.
SIMD_SOURCES = ("rows", "philox")
X86_SETS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def cpu_objects() -> dict[str, tuple[str, str]]:
    """Object file -> (source, extra flags)."""
    sources = [*sorted((ROOT / "csrc" / "cpu").rglob("*.cpp")), ROOT / "csrc" / "bindings.cpp"]
    define = " -DSEDD_X86" if is_x86() else ""
    once = [source for source in sources if source.stem not in SIMD_SOURCES]
    made = {s.stem: (str(s.relative_to(ROOT)), define) for s in once}
    sets = {"baseline": "", **(X86_SETS if is_x86() else {})}
    for name, flags in sets.items():
        for stem in SIMD_SOURCES:
            source = f"csrc/cpu/simd/{stem}.cpp"
            made[f"{stem}_{name}"] = (source, f"-DSEDD_ISA={name}{define} {flags}")
    return {f"{name}.o": source for name, source in made.items()}


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
    """A rule of build.ninja that compiles, and learns the headers."""
    return [
        f"rule {name}",
        f"  command = {command} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def builds(rule_name: str, objects: dict[str, tuple[str, str]]) -> list[str]:
    lines = []
    for name, (source, flags) in objects.items():
        lines += [f"build {name}: {rule_name} {escaped(ROOT / source)}", f"  flags = {flags}"]
    return lines


def linked(command: str, objects: list[str], target: Path) -> str:
    lines = ["rule link", f"  command = {command} $in -o $out"]
    return "\n".join([*lines, f"build {escaped(target)}: link {' '.join(objects)}", ""])


def cpu_ninja(compiler: str, target: Path) -> str:
    """build.ninja of the CPU module."""
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    objects = cpu_objects()
    lines = rule("compile", f"{compiler} {FLAGS} {QUIET} {includes()}")
    lines += builds("compile", objects)
    return "\n".join([*lines, linked(f"{compiler} {link} -pthread", list(objects), target)])


def cuda_ninja(compiler: str, nvcc: str, target: Path) -> str:
    """build.ninja of the CUDA module: kernels by nvcc, bindings by the C++ compiler."""
    host = f" -ccbin {shlex.quote(compiler)}" if os.environ.get("CXX") else ""
    device = f"{nvcc}{host} {NVCC_FLAGS} {code_flags(nvcc)}"
    kernels, bindings = cuda_objects(), {"bindings.o": ("csrc/cuda/bindings.cpp", "")}
    lines = rule("kernel", f"{device} -I{shlex.quote(str(ROOT / 'csrc'))}")
    lines += rule("compile", f"{compiler} {FLAGS} {QUIET} {includes()}")
    lines += builds("compile", bindings) + builds("kernel", kernels)
    return "\n".join([*lines, linked(f"{device} -shared", [*bindings, *kernels], target)])


def code_flags(nvcc: str) -> str:
    """Machine code for every architecture asked for, and PTX of the newest."""
    asked = os.environ.get("SEDD_FAST_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    archs = asked or [arch for arch in CUDA_ARCHS if arch in known_archs(nvcc)]
    newest = max(archs, key=lambda arch: int(arch.rstrip("af")))
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return " ".join([*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"])


def known_archs(nvcc: str) -> set[str]:
    command = [*shlex.split(nvcc), "--list-gpu-arch"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.removeprefix("compute_") for line in done.stdout.split()}


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
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja")


class BuildKernels(build_ext):
    """Compiles with ninja; leaves a module out, with one line, where that cannot be done."""

    def build_extension(self, ext: Extension) -> None:
        gpu = ext.name.endswith("_cuda")
        if os.environ.get("SEDD_FAST_CUDA" if gpu else "SEDD_FAST_CPU", "1") == "0":
            return
        found = {"a C++ compiler": find_compiler(), "ninja": find_ninja()}
        if gpu:
            found["nvcc (the CUDA toolkit; set CUDA_HOME)"] = find_nvcc()
        if missing := [name for name, path in found.items() if path is None]:
            self.leave_out(gpu, f"there is no {missing[0].removeprefix('a ')}")
            return
        compiler, ninja, *nvcc = found.values()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / ("cuda" if gpu else "cpu")
        work.mkdir(parents=True, exist_ok=True)
        text = cuda_ninja(compiler, *nvcc, target) if gpu else cpu_ninja(compiler, target)
        (work / "build.ninja").write_text(text)
        done = subprocess.run([ninja, "-C", str(work)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            self.leave_out(gpu, "they did not compile (output above)")

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


setup(
    packages=[*find_packages(include=["sedd_fast", "sedd_fast.*"]), "sedd_fast.kernels"],
    package_dir={"sedd_fast.kernels": "kernels"},
    package_data={"sedd_fast": ["py.typed", "train/presets/*.yaml"]},
    ext_modules=[
        Extension(f"sedd_fast.{name}", sources=[], optional=True) for name in ("_cpu", "_cuda")
    ],
    cmdclass={"build_ext": BuildKernels},
)
