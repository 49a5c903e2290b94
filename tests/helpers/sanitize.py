"""Runs the C++ kernels under sanitizers: faults of memory, undefined behaviour, data races.

    python tests/helpers/sanitize.py              # with CXX, else the first compiler of setup.py

1. csrc is built with ASan and UBSan into build/sanitize. The row functions are checked by
   themselves for every instruction set; then the operations' tests and some fuzz cases run with
   the built module in place of ``sedd_fast._cpu``. The first report ends a run.
2. The thread pool (csrc/cpu/parallel.cpp) runs in a program of its own under TSan. OpenMP's
   runtime is not part of it: TSan does not know libgomp's barriers and would report every one.

There are no suppressions. The exit status is 0; 1 where something is reported or fails; 2 where the
compiler lacks a sanitizer.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitize"
ADDRESS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
THREAD = "-fsanitize=thread -fno-omit-frame-pointer -g -O1 -std=c++17 -pthread"
TESTS = (
    *("alignment", "arguments", "edges", "linear_cross_entropy", "linear_denoise"),
    *("linear_denoise_draws", "linear_reverse_step", "linear_score_entropy"),
    *("reverse_step", "row_sums", "sample_transition", "score_entropy", "score_range"),
    *("temperature_top_p", "uniforms"),
)
#: Python itself leaks at its end, and torch allocates what no sanitizer has to know.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "OMP_NUM_THREADS": "2",
    "SEDD_FAST_SANITIZED": str(FOLDER / "_cpu.so"),
}


def lacks(compiler: str, flags: str) -> bool:
    """Whether the compiler does not build a program with these flags."""
    program = FOLDER / "probe"
    command = [*shlex.split(f"{compiler} {flags}"), "-x", "c++", "-", "-o", str(program)]
    done = subprocess.run(command, input=b"int main() {}", capture_output=True, check=False)
    return bool(done.returncode)


def runtimes(compiler: str) -> str:
    """The libraries of ASan and UBSan, to be loaded before Python's own."""
    names = ["libasan.so", "libubsan.so", "libclang_rt.asan-x86_64.so", "libclang_rt.asan.so"]
    found = []
    for name in names:
        command = [*shlex.split(compiler), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if Path(path).is_absolute() and Path(path).exists():
            found.append(str(Path(path).resolve()))
    of_clang = [path for path in found if "clang_rt" in path]
    return ":".join(of_clang[:1] or found)


def run(command: list[str], **environment: str) -> bool:
    print("+", *command, flush=True)
    env = {**os.environ, **OPTIONS, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


def use_sanitized_module() -> None:
    """Put the built module in the place of ``sedd_fast._cpu``."""
    spec = importlib.util.spec_from_file_location(
        "sedd_fast._cpu", os.environ["SEDD_FAST_SANITIZED"]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sedd_fast._cpu"] = module
    spec.loader.exec_module(module)


def build(setup: dict[str, Any], compiler: str) -> bool:
    """build/sanitize/_cpu.so."""
    target = Path(OPTIONS["SEDD_FAST_SANITIZED"])
    (FOLDER / "build.ninja").write_text(setup["cpu_ninja"](compiler, target))
    return not subprocess.run([setup["find_ninja"]()], cwd=FOLDER, check=False).returncode


def check_pool(compiler: str) -> bool:
    """The thread pool by itself, under TSan."""
    program = FOLDER / "pool"
    sources = ("tests/helpers/pool.cpp", "csrc/cpu/parallel.cpp")
    command = [*shlex.split(f"{compiler} {THREAD}"), "-Icsrc", *sources, "-o", str(program)]
    return run(command) and run([str(program)], TSAN_OPTIONS="halt_on_error=1:exitcode=66")


def main() -> int:
    """Build and run; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", default="1", help="of fuzzing, for each instruction set")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import check_rows

    setup = check_rows.setup_functions()
    # -O3 takes many times as long to compile with sanitizers.
    setup["FLAGS"] = setup["FLAGS"].replace("-O3", "-O1")
    setup["cpu_ninja"].__globals__["FLAGS"] = setup["FLAGS"]
    compiler = setup["find_compiler"]() or "c++"
    FOLDER.mkdir(parents=True, exist_ok=True)
    version = subprocess.run(
        [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False
    ).stdout
    address = ADDRESS + " -shared-libsan" * ("clang" in version)
    for flags, names in ((address, "AddressSanitizer and UBSan"), (THREAD, "ThreadSanitizer")):
        if lacks(compiler, flags):
            print(
                f"{compiler} lacks {names}: install its runtime libraries (with GCC libasan, "
                "libubsan and libtsan) or set CXX to a compiler that has them",
                file=sys.stderr,
            )
            return 2
    sanitized = f"{compiler} {address}"
    if not check_pool(compiler) or not build(setup, sanitized):
        return 1
    program = check_rows.compiled(setup, sanitized, FOLDER, strict=False)
    sets = check_rows.instruction_sets(setup)
    if program is None or not all([run([str(program)], SEDD_FAST_ISA=isa) for isa in sets]):
        return 1
    python = [sys.executable, "-c"]
    start = "import sys; sys.path[:0] = ['tests', '.']; from helpers import sanitize; "
    start += "sanitize.use_sanitized_module(); "
    files = [f"tests/ops/test_{name}.py" for name in TESTS] + ["tests/backends/test_threads.py"]
    options = ["-q", "-x", "-n0", "-p", "no:cacheprovider", "-k", "cpp or threads"]
    preload = {"LD_PRELOAD": runtimes(compiler)}
    tests = f"import pytest; sys.exit(pytest.main({[*options, *files]}))"
    passed = run([*python, start + tests], **preload)
    for isa in sets if passed else ():
        fuzz = "import runpy; sys.argv[1:] = ['--minutes', '{}']; runpy.run_path({!r}, None, {!r})"
        fuzz = fuzz.format(asked.minutes, "tests/fuzz/run.py", "__main__")
        passed = passed and run([*python, start + fuzz], SEDD_FAST_ISA=isa, **preload)
    print("no report" if passed else "FAILED: see above")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
