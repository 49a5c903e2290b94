"""setup.py: for which GPUs nvcc compiles, and what a build prints. No compiler runs."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: The architectures of a toolkit, as ``nvcc --list-gpu-arch`` prints them.
KNOWN = "compute_75\ncompute_80\ncompute_86\ncompute_90\ncompute_100\ncompute_120"
#: A compiler: its output is empty.
COMPILER = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done'

#: Puts an executable shell script of that name in front on PATH.
Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_HOME", "CXX", "SEDD_FAST_CUDA_ARCHS", "SEDD_FAST_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SEDD_FAST_CUDA", "1")  # whatever torch is installed

    def put(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return put


def setup_py() -> dict:
    """The functions of setup.py."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(
    ("asked", "gpus", "machine", "ptx"),
    [
        ("", "", [], "80"),
        ("", "9.0\n9.0\n8.6", ["86", "90"], "90"),
        ("", "7.5", ["75"], "75"),
        ("", "7.0", [], "80"),  # older than what the toolkit knows
        ("", "10.3", [], "100"),  # between two that it knows
        ("", "8.0\n13.0", ["80"], "120"),  # newer
        ("", "[N/A]\nNo devices were found", [], "80"),
        ("90a", "8.0", ["90a"], "90a"),
        ("100;80, 90", "", ["100", "80", "90"], "100"),
    ],
)
def test_architectures(program, monkeypatch, asked, gpus, machine, ptx):
    nvcc = program("nvcc", f'[ "$1" = --list-gpu-arch ] && echo "{KNOWN}"')
    program("nvidia-smi", f'[ "$1" = --query-gpu=compute_cap ] && echo "{gpus}"')
    monkeypatch.setenv("SEDD_FAST_CUDA_ARCHS", asked)
    targets = setup_py()["cuda_targets"](str(nvcc))
    assert (targets.machine, targets.ptx) == (machine, ptx)
    flags = targets.flags().split()
    expected = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in machine]
    assert flags == [*expected, f"-gencode=arch=compute_{ptx},code=compute_{ptx}"]


@pytest.mark.parametrize("nvidia_smi", ["exit 9", "echo 'NVIDIA-SMI has failed'; exit 9"])
def test_architecture_where_neither_program_answers(program, nvidia_smi):
    nvcc = program("nvcc", "echo 'unknown option' >&2; exit 1")
    program("nvidia-smi", nvidia_smi)
    targets = setup_py()["cuda_targets"](str(nvcc))
    assert targets.flags() == "-gencode=arch=compute_80,code=compute_80"


@pytest.mark.parametrize(
    ("cuda", "variables", "built"),
    [
        ("None", {}, False),
        ("'12.8'", {}, True),
        ("None", {"SEDD_FAST_CUDA": "1"}, True),
        ("None", {"SEDD_FAST_CUDA_ARCHS": "90"}, True),
        ("'12.8'", {"SEDD_FAST_CUDA": "0"}, False),
    ],
)
def test_cuda_kernels_are_for_a_torch_with_cuda(
    program, tmp_path, monkeypatch, cuda, variables, built
):
    program("nvcc", f'[ "$1" = --list-gpu-arch ] && echo "{KNOWN}"; {COMPILER}')
    program("nvidia-smi", "echo 9.0")
    program("c++", COMPILER)
    torch = tmp_path / "path" / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").write_text("raise SystemExit('torch must not be imported')")
    (torch / "version.py").write_text(f"cuda: str | None = {cuda}\nhip: str | None = None")
    monkeypatch.setenv("PYTHONPATH", str(torch.parent))
    monkeypatch.delenv("SEDD_FAST_CUDA")
    for name, value in {"SEDD_FAST_CPU": "0", **variables}.items():
        monkeypatch.setenv(name, value)
    printed = build(tmp_path / "lib")
    assert modules(tmp_path / "lib") == ["_cuda"] * built
    skipped = not built and variables.get("SEDD_FAST_CUDA") != "0"
    line = "the CUDA kernels are left out: torch is installed without CUDA (SEDD_FAST_CUDA=1"
    assert printed.count(line) == skipped


def test_an_isolated_build_finds_the_torch_that_is_installed(tmp_path, monkeypatch):
    function = setup_py()["torch_without_cuda"]
    monkeypatch.setattr(sys, "path", [])
    for text, without in (("cuda = None", True), ("cuda = '12.8'", False), ("", False)):
        site = tmp_path / str(len(text))
        (site / "torch").mkdir(parents=True)
        (site / "torch" / "__init__.py").touch()
        (site / "torch" / "version.py").write_text(text)
        monkeypatch.setattr("sysconfig.get_path", lambda name, site=site: str(site))
        assert function() == without
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert not function()  # no torch: the build cannot tell


def build(target: Path, root: Path = ROOT) -> str:
    """Build both modules of a checkout into a folder; what was printed."""
    command = [sys.executable, str(root / "setup.py"), "--quiet", "build_ext"]
    command += ["--build-lib", str(target), "--build-temp", str(target / "objects")]
    done = subprocess.run(
        command, cwd=root, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def modules(target: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in target.glob("sedd_fast/*"))


def test_a_build_shows_its_progress(program, tmp_path):
    program("c++", COMPILER)
    program("nvcc", f'[ "$1" = --list-gpu-arch ] && echo "{KNOWN}"; {COMPILER}')
    program("nvidia-smi", "echo 9.0")
    printed = build(tmp_path / "lib")
    assert modules(tmp_path / "lib") == ["_cpu", "_cuda"]
    assert "CUDA kernels for sm_90, PTX 90 (" in printed
    functions = setup_py()
    x86 = functions["is_x86"]()
    objects = ["bindings.o", *functions["cpu_objects"](x86, "c++"), *functions["cuda_objects"]()]
    for name in objects:
        assert re.search(rf"^\[\d+/\d+\] (compile|nvcc) {name}$", printed, re.MULTILINE), name


def test_paths_with_characters_of_the_shell_and_of_ninja(program, tmp_path, monkeypatch):
    """The compilers fail unless every -I names a folder, as a true one needs it."""
    check = 'for a in "$@"; do case "$a" in -I*) test -d "${a#-I}" || exit 1;; esac; done; '
    program("c++", check + COMPILER)
    nvcc = program("nvcc", f'[ "$1" = --list-gpu-arch ] && echo "{KNOWN}"; {check}{COMPILER}')
    home = tmp_path / "cuda $HOME"
    (home / "bin").mkdir(parents=True)
    nvcc.rename(home / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(home))
    root = tmp_path / "cost$HOME $$ it's: #1 `a`"
    root.mkdir()
    shutil.copy(ROOT / "setup.py", root)
    for name in ("pyproject.toml", "README.md", "LICENSE", "csrc", "kernels", "sedd_fast"):
        (root / name).symlink_to(ROOT / name)
    printed = build(root / "lib", root)
    assert modules(root / "lib") == ["_cpu", "_cuda"], printed


def test_an_older_compiler_builds_without_avx512_bf16(program):
    program("old++", 'case "$*" in *mavx512bf16*) exit 1;; esac')
    program("new++", "exit 0")
    objects = setup_py()["cpu_objects"]
    assert "rows_avx512_bf16.o" in objects(True, "new++")
    assert "-DSEDD_AVX512_BF16" in objects(True, "new++")["row_table.o"][1]
    assert "rows_avx512.o" in objects(True, "old++")
    assert "rows_avx512_bf16.o" not in objects(True, "old++")
    assert "-DSEDD_AVX512_BF16" not in objects(True, "old++")["row_table.o"][1]


def test_a_module_that_does_not_compile_is_left_out(program, tmp_path):
    program("c++", COMPILER)
    program("nvcc", COMPILER)
    program("nvidia-smi", "exit 9")
    build(tmp_path / "lib")
    assert modules(tmp_path / "lib") == ["_cpu", "_cuda"]
    program("nvcc", "echo 'error: no such instruction'; exit 1")
    (tmp_path / "lib" / "objects" / "cuda" / "dispatch.o").unlink()
    printed = build(tmp_path / "lib")
    error = printed.index("error: no such instruction")
    assert error < printed.index("the CUDA kernels are left out: they did not compile")
    assert "C++ kernels are left out" not in printed
    assert modules(tmp_path / "lib") == ["_cpu"]  # that of the earlier build is gone


def test_the_check_for_arm_names_the_packages_that_it_lacks(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "check_rows.py"), "--arm"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "apt-get install g++-aarch64-linux-gnu qemu-user" in done.stderr
