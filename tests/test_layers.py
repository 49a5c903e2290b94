"""Imports point downward only, and importing the package imports nothing heavy.

cli -> compat, demo -> train, sampling, evaluate, ... -> losses, model -> graphs, noise -> ops ->
backends -> kernels and compiled modules. A module may import its own layer and those below.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sedd_fast

PACKAGE = Path(sedd_fast.__file__).parent
#: From the top; a module that is named nowhere belongs to the layer of "train".
LAYERS = (
    {"cli", "__main__"},
    {"sedd_fast", "compat", "demo"},  # "sedd_fast": the names that the package re-exports
    {"train", "sampling", "samplers", "evaluate"},
    {
        "losses",
        "objectives",
        "posterior",
        "posterior_sedd",
        "model",
        "transformer",
        "checkpoint",
        "ema",
    },
    {"graphs", "dense_graph", "noise"},
    {"ops"},
    {"backends"},
    {"kernels", "_cpu", "version"},
)
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
    """Depth of a top-level module of the package; 0 is the top."""
    found = [depth for depth, names in enumerate(LAYERS) if name in names]
    return found[0] if found else layer("train")


def top_level(path: Path) -> str:
    """The part of the package that a file belongs to: "ops" for ops/score_entropy.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "sedd_fast" if parts == ("__init__",) else parts[0]


def imported(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, top-level module) of every import from the package, wherever it stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        inside = [name.split(".") for name in names if name.split(".")[0] == "sedd_fast"]
        for parts in inside:
            is_module = len(parts) > 1 and exists(parts[1])
            found.append((node.lineno, parts[1] if is_module else "sedd_fast"))
    return found


def exists(name: str) -> bool:
    compiled = name in ("_cpu", "kernels")
    return compiled or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path):
    own = top_level(path)
    upward = [
        f"line {line}: {own} imports {name}"
        for line, name in imported(ast.parse(path.read_text()))
        if layer(name) < layer(own)
    ]
    assert not upward


def test_the_walk_sees_every_form_of_import():
    code = "import sedd_fast.train\nfrom sedd_fast import model, Graph\ndef f():\n    from "
    code += "sedd_fast.ops.score_entropy import x\nimport torch\nimport sedd_fast as sf\n"
    names = [name for _, name in imported(ast.parse(code))]
    assert sorted(names) == ["model", "ops", "sedd_fast", "sedd_fast", "train"]
    assert layer("cli") < layer("train") == layer("a new one") < layer("ops") < layer("_cpu")


def test_every_layer_is_there():
    for names in LAYERS:
        assert all(exists(name) for name in names if name != "sedd_fast"), names


def test_no_import_pulls_in_anything_heavy():
    code = f"""
import sys
import torch
before = set(sys.modules)
import sedd_fast
heavy = [name for name in {HEAVY!r} if name in set(sys.modules) - before]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
