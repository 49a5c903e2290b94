"""The source distribution carries what it needs, and an install without a compiler still works."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


#: Compiling everything again would take most of a minute. So every file is only preprocessed, which
#: needs its headers, and the object is that of the same file in this checkout, if it has one.
COMPILER = f"""#!/bin/bash
made={ROOT}/build/objects/cpu/$(basename "${{@: -1}}")
if [[ " $* " != *" -c "* || ! -f $made ]]; then exec c++ "${{@/#-O3/-O0}}"; fi
c++ "$@" -E && cp "$made" "${{@: -1}}"
"""


def build(source: Path, target: Path, kind: str, **environment: str) -> tuple[Path, str]:
    """Build an sdist or a wheel with what is installed here; the file, and what was printed."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(target), str(source)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    archive, _ = build(ROOT, folder / "dist", "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source


@pytest.mark.parametrize(
    "name",
    ["csrc/common/coefficients.h", "csrc/cpu/simd/rows.cpp", "kernels/__init__.py", "setup.py",
     "sedd_fast/py.typed", "sedd_fast/training/presets/tiny.yaml",
     "sedd_fast/text/python_help/model.safetensors",
     "tests/golden/process.safetensors",
     "benchmarks/run.py", "README.md", "LICENSE", "constraints.txt"],
)  # fmt: skip
def test_source_distribution_carries(sdist: Path, name: str):
    assert (sdist / name).is_file()


def test_wheel_from_the_source_distribution_imports(sdist: Path, tmp_path: Path):
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    for path in sources:
        assert (sdist / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    compiler = tmp_path / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    variables = {"CXX": str(compiler), "SEDD_FAST_CUDA": "0"}  # as without nvcc
    wheel, _ = build(sdist, tmp_path / "dist", "wheel", **variables)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import sedd_fast, sedd_fast.kernels, torch; from sedd_fast.backends import cpp;"
        "print(sedd_fast.__file__); assert cpp.unavailable() is None;"
        "sedd_fast.sample_transition(torch.zeros(1, 4).long(), 0.5, sedd_fast.Absorbing(5))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(site)


def test_without_a_compiler_the_build_succeeds_and_says_so(sdist: Path, tmp_path: Path):
    source = shutil.copytree(sdist, tmp_path / "source", ignore=shutil.ignore_patterns("build"))
    wheel, printed = build(source, tmp_path / "dist", "wheel", CXX="no-such-compiler")
    assert printed.count("the C++ kernels are left out") == 1
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert "sedd_fast/backends/reference/score_entropy.py" in names


def test_an_editable_install_is_a_path_entry(sdist: Path, tmp_path: Path):
    """Type checkers and editors read it; setuptools' import hook hides the package from them."""
    source = shutil.copytree(sdist, tmp_path / "source", ignore=shutil.ignore_patterns("build"))
    command = [sys.executable, "setup.py", "--quiet", "editable_wheel", "--dist-dir", "dist"]
    without = {"SEDD_FAST_CPU": "0", "SEDD_FAST_CUDA": "0"}
    for _ in range(2):  # installing again replaces the links
        subprocess.run(command, cwd=source, check=True, env={**os.environ, **without})
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        entry = Path(archive.read(path).decode().strip())
    assert path.endswith(".pth")
    assert [found.name for found in entry.iterdir()] == ["sedd_fast"]  # no tests, no benchmarks
    for name in ("__init__.py", "py.typed", "kernels/settings.py"):
        assert (entry / "sedd_fast" / name).samefile(source / "sedd_fast" / name)
    assert (source / "sedd_fast" / "kernels").samefile(source / "kernels")


def is_installed_editable() -> bool:
    """Whether pip installed this checkout with -e."""
    texts = (found.read_text("direct_url.json") for found in distributions(name="sedd-fast"))
    records = [json.loads(text) for text in texts if text]
    return any(r["url"] == ROOT.as_uri() and r["dir_info"].get("editable") for r in records)


@pytest.mark.skipif(not is_installed_editable(), reason="the package is not installed with -e")
def test_a_type_checker_finds_the_editable_install(tmp_path: Path):
    names = ("sedd_fast", "sedd_fast.process.graphs", "sedd_fast.kernels.settings")
    script = tmp_path / "script.py"
    script.write_text("".join(f"import {name}\n" for name in (*names, "sedd_fast.no_such_module")))
    # Imports are found but not followed: torch's would take a minute.
    options = ("--config-file=", "--follow-imports=skip", f"--cache-dir={tmp_path}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, script.name], cwd=tmp_path, check=False,
        capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")},
    )  # fmt: skip
    (error, *_), count = done.stdout.splitlines(), done.stdout.count(": error: ")
    assert (error.startswith("script.py:4: error: "), count) == (True, 1), done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("target", "tools"), [("install", 0), ("demo", 0), ("lint", 1)])
def test_only_developers_commands_install_linters(target: str, tools: int, tmp_path: Path):
    command = ["make", "--dry-run", f"VENV={tmp_path}", target]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.count("sedd-fast[test]") == tools
    assert done.stdout.count("'.[train,plot]'") == 1
