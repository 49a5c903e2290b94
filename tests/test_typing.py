"""A user's code passes mypy --strict, and the names of ``sedd_fast`` are there when asked for."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import sedd_fast
from sedd_fast import names
from sedd_fast.backends import compiled
from sedd_fast.data.datasets import NAMED
from sedd_fast.evaluate.tradeoff import LABELS
from sedd_fast.models.networks import KINDS
from sedd_fast.sampling.methods import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "typed_user.py"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def used(code: str) -> set[str]:
    """The names that a script takes from ``sf``."""
    nodes = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute))
    return {n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "sf"}


def test_the_script_uses_every_name():
    assert used(SCRIPT.read_text()) - {"no_such_name"} == set(sedd_fast.__all__)


#: What mypy --strict sets, for the scripts. The package is as other packages are to a user.
STRICT = """
[[tool.mypy.overrides]]
module = "sedd_fast.*"
implicit_reexport = false
ignore_errors = true
[[tool.mypy.overrides]]
module = ["typed_user", "example"]
disallow_any_generics = true
disallow_subclassing_any = true
disallow_untyped_calls = true
disallow_untyped_defs = true
disallow_untyped_decorators = true
warn_unused_ignores = true
warn_return_any = true
implicit_reexport = false
strict_equality = true
extra_checks = true
"""


def test_users_scripts_pass_mypy_strict(tmp_path, pytestconfig, monkeypatch):
    """Torch has the options of this project, so what `make lint` has read of it is read again."""
    api = pytest.importorskip("mypy.api")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    shutil.copy(SCRIPT, tmp_path)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (options,) = re.findall(r"^\[tool\.mypy\]\n.*?(?=^\[tool\.)", project, re.DOTALL | re.MULTILINE)
    options = re.sub(r"^(files|exclude) = .*\n", "", options, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text(options + STRICT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    cache = pytestconfig.cache.mkdir("mypy")
    if (read := ROOT / ".mypy_cache").exists():
        shutil.copytree(read, cache, dirs_exist_ok=True)
    command = [f"--cache-dir={cache}", "typed_user.py"]
    out, err, code = api.run([*command, "example.py"])
    assert code == 0, out + err
    (tmp_path / "example.py").write_text(f"{example}\nx: int = model\ndef f(a): return a\n")
    out, err, code = api.run([*command, "example.py"])
    assert out.count("error: ") == 2, out + err


def test_the_table_is_that_of_the_imports():
    tree = ast.parse(Path(sedd_fast.__file__).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    listed = {a.asname: node.module for node in found for a in node.names if a.asname}
    assert listed.pop("__version__") == "sedd_fast.version"
    assert listed == sedd_fast._MODULES


def test_threads_that_are_the_first_to_use_a_name():
    """Modules that import each other must not be seen half made."""
    code = """if True:
        import sys, threading
        sys.setswitchinterval(1e-6)
        import sedd_fast as sf
        errors, start = [], threading.Barrier(4)
        def use(name):
            start.wait()
            try:
                getattr(sf, name)
            except BaseException as error:
                errors.append((name, repr(error)))
        names = ["sample", "ScoreEntropyLoss", "load", "SEDD"]
        threads = [threading.Thread(target=use, args=(name,)) for name in names]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(errors)
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names_are_there_when_asked_for():
    assert {"sampling", "training", "ops", "text"} <= set(dir(sedd_fast))
    assert not hasattr(sedd_fast, "sampling.api")
    assert not hasattr(sedd_fast, "__wrapped__")
    for name in sedd_fast.__all__:
        assert getattr(sedd_fast, name) is not None
    assert set(sedd_fast.__all__) <= set(dir(sedd_fast))
    scope: dict[str, object] = {}
    exec("from sedd_fast import *", scope)
    assert scope.keys() >= set(sedd_fast.__all__)
    assert sedd_fast.sampling.METHODS == names.METHODS  # a package, without an import of it
    with pytest.raises(AttributeError, match="module 'sedd_fast' has no attribute 'smaple'"):
        _ = sedd_fast.smaple
    with pytest.raises(ImportError, match="cannot import name 'smaple'"):
        exec("from sedd_fast import smaple")


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, sedd_fast, sedd_fast.names; assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tables_have_the_names_of_their_lists():
    assert tuple(SAMPLERS) == names.METHODS
    assert tuple(compiled.GRAPHS) == names.GRAPHS
    assert tuple(compiled.METHODS) == names.STEP_METHODS
    assert set(compiled.TERMS) == set(names.TERMS)
    assert tuple(NAMED) == names.DATA_SETS
    assert tuple(LABELS) == get_args(names.Metric)
    assert set(KINDS) == set(get_args(names.NetworkKind))
    presets = ROOT / "sedd_fast" / "training" / "presets"
    assert {path.stem for path in presets.glob("*.yaml")} == set(names.PRESETS)
