"""Imports point downward only and in no circle, and no name of the package needs more than torch.

A package may import from the rows of ``LAYERS`` below its own, and from itself. Packages in one row
do not know each other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sedd_fast

PACKAGE = Path(sedd_fast.__file__).parent
#: Every package and every module beside them, from the top. "sedd_fast" is what the package itself
#: re-exports.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("sedd_fast",),
    ("compat", "text"),
    ("training",),
    ("evaluate",),
    ("data",),
    ("losses", "sampling"),
    ("models",),
    ("process",),
    ("ops",),
    ("environment",),
    ("backends",),
    ("kernels", "_cpu", "_cuda", "extras", "files", "progress", "version"),
    ("terminal", "names"),
)
#: At most so many modules beside the packages.
MOST_MODULES = 8
HEAVY = (
    "accelerate",
    "datasets",
    "matplotlib",
    "omegaconf",
    "pandas",
    "rich",
    "scipy",
    "tensorboard",
    "tokenizers",
    "transformers",
    "triton",
    "typer",
    "wandb",
)


def layer(name: str) -> int:
    """Depth of a package or module; 0 is the top."""
    (depth,) = (depth for depth, names in enumerate(LAYERS) if name in names)
    return depth


def package_of(path: Path) -> str:
    """ "ops" for ops/score_entropy.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "sedd_fast" if parts == ("__init__",) else parts[0]


def module_of(path: Path) -> str:
    """ "ops.score_entropy" for ops/score_entropy.py, "ops" for ops/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "sedd_fast"


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name within the package) of every import from it, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "sedd_fast":
                yield node.lineno, rest


def imported_package(name: str) -> str:
    """The package of a dotted name; "sedd_fast" for what the package re-exports."""
    first = name.partition(".")[0]
    compiled = first in ("_cpu", "_cuda", "kernels")
    known = compiled or (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return first if first and known else "sedd_fast"


def upward(own: str, tree: ast.AST) -> list[str]:
    """The imports of a module of the package ``own`` that do not point downward."""
    found = [(line, imported_package(name)) for line, name in imports(tree)]
    return [
        f"line {line}: {own} imports {other}"
        for line, other in found
        if other != own and layer(other) <= layer(own)
    ]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if package_of(path) != "kernels")
MODULES = {module_of(path): path for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path):
    assert not upward(package_of(path), ast.parse(path.read_text()))


def test_there_is_no_circle():
    graph = {
        name: {known for _, of in imports(ast.parse(path.read_text())) for known in names_of(of)}
        - {name}
        for name, path in MODULES.items()
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def names_of(dotted: str) -> list[str]:
    """The module that a dotted name is, or is taken from."""
    return [name for name in (dotted, dotted.rpartition(".")[0]) if name in MODULES][:1]


def test_an_upward_import_and_a_circle_are_seen():
    code = (
        "import sedd_fast.training.loop\nfrom sedd_fast import models, Graph\ndef f():\n    from "
    )
    code += "sedd_fast.ops.score_entropy import x\nimport torch\nimport sedd_fast as sf\n"
    tree = ast.parse(code)
    names = [imported_package(name) for _, name in imports(tree)]
    assert sorted(names) == ["models", "ops", "sedd_fast", "sedd_fast", "training"]
    assert upward("evaluate", tree) == [
        "line 1: evaluate imports training",
        "line 2: evaluate imports sedd_fast",
        "line 6: evaluate imports sedd_fast",
    ]
    assert upward("sampling", ast.parse("from sedd_fast.losses import Objective"))
    assert not upward("cli", tree)
    assert names_of("losses.objective.Objective") == ["losses.objective"]


def test_every_package_is_named_once():
    named = [name for names in LAYERS for name in names]
    assert len(named) == len(set(named))
    here = {package_of(path) for path in FILES} | {"kernels", "_cpu", "_cuda"}
    assert set(named) == here


def test_few_modules_stand_beside_the_packages():
    beside = [path.name for path in PACKAGE.glob("*.py")]
    assert len(beside) <= MOST_MODULES, beside


def test_no_name_of_the_package_pulls_in_anything_heavy():
    code = f"""
import sys
import torch
before = set(sys.modules)
from sedd_fast import *
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - before]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
