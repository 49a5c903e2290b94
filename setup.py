"""Builds sedd_fast and its compiled module; see pyproject.toml for the rest.

The module needs a C++17 compiler and neither torch nor any library at build time. Its inner loops
(csrc/cpu/rows.cpp) are compiled once for every instruction set and chosen at run time, so one build
runs on any processor of its kind. Without a compiler the install still succeeds and says so.
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
X86_SETS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def objects() -> dict[str, tuple[str, str]]:
    """Object file -> (source, extra flags)."""
    sources = [*sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), ROOT / "csrc" / "bindings.cpp"]
    define = " -DSEDD_X86" if is_x86() else ""
    made = {s.stem: (str(s.relative_to(ROOT)), define) for s in sources if s.stem != "rows"}
    sets = {"baseline": "", **(X86_SETS if is_x86() else {})}
    for name, flags in sets.items():
        made[f"rows_{name}"] = ("csrc/cpu/rows.cpp", f"-DSEDD_ISA={name} {flags}")
    return {f"{name}.o": source for name, source in made.items()}


def ninja_file(compiler: str, target: Path) -> str:
    """build.ninja: one rule to compile, one to link."""
    import pybind11

    include = " ".join(
        f"-I{shlex.quote(str(path))}"
        for path in (ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])
    )
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    lines = [
        "rule compile",
        f"  command = {compiler} {FLAGS} {QUIET} {include} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} {link} -pthread $in -o $out",
    ]
    built = objects()
    for name, (source, flags) in built.items():
        lines += [f"build {name}: compile {escaped(ROOT / source)}", f"  flags = {flags}"]
    lines += [f"build {escaped(target)}: link {' '.join(built)}", ""]
    return "\n".join(lines)


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
    """Compiles with ninja; leaves the module out, with one line, where that cannot be done."""

    def build_extension(self, ext: Extension) -> None:
        compiler, ninja = find_compiler(), find_ninja()
        if compiler is None or ninja is None:
            missing = "C++ compiler" if compiler is None else "ninja"
            self.leave_out(f"no {missing} was found")
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(ninja_file(compiler, target))
        done = subprocess.run([ninja, "-C", str(work)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            self.leave_out("they did not compile (output above)")

    def leave_out(self, reason: str) -> None:
        print(
            f"sedd_fast: the C++ kernels are left out: {reason}; everything runs on the slower "
            "reference backend. Install g++ or clang++ and run pip install again.",
            file=sys.stderr,
        )

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    packages=[*find_packages(include=["sedd_fast", "sedd_fast.*"]), "sedd_fast.kernels"],
    package_dir={"sedd_fast.kernels": "kernels"},
    package_data={"sedd_fast": ["py.typed", "presets/*.yaml"]},
    ext_modules=[Extension("sedd_fast._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels},
)
