"""Without the optional libraries: one line with the extra, exit code 2; the rest works."""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sedd_fast.data.copies import named_rows
from sedd_fast.data.hub_tokenizers import TransformersTokenizer, load_from_hub
from sedd_fast.extras import EXTRAS, MissingLibraryError, import_library, missing_libraries
from sedd_fast.training.api import resume

ROOT = Path(__file__).resolve().parents[2]
#: Library -> its extra.
EXTRA_OF = {name: extra for extra, names in EXTRAS.items() for name in names}

Without = Callable[..., None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """`without("accelerate")`: it, and what is within it, cannot be imported."""

    def hide(*libraries: str) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] in libraries]:
            monkeypatch.delitem(sys.modules, name)
        for name in libraries:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("accelerate", "train data.train=TEXT --run-dir NEW"),
        ("accelerate", "train --resume RUN"),
        ("accelerate", "demo --run-dir NEW"),
        ("accelerate", "tradeoff -m RUN --ar NEW"),
        ("tensorboard", "train data.train=TEXT log.tensorboard=true model.length=16 --run-dir NEW"),
        (
            "wandb",
            "train data.train=TEXT log.tensorboard=false log.wandb=true model.length=16 "
            "--run-dir NEW",
        ),
        ("datasets", "train data.train=ptb --run-dir NEW"),
        ("datasets", "eval ptb -m RUN"),
        ("datasets", "eval ptb -m RUN --data SAMPLES"),
        ("transformers", "genppl SAMPLES"),
        ("transformers", "tradeoff -m RUN --judge gpt2"),
        ("mauve", "mauve SAMPLES --reference SAMPLES"),
        ("lm_eval", "lm-eval ls tasks"),
    ],
)
def test_a_command_names_the_extra(library, command, call, without, run_dir, text_file, tmp_path):
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"text": "the cat"}))
    paths = {"TEXT": text_file, "RUN": run_dir, "NEW": tmp_path / "new", "SAMPLES": samples}
    for word, path in paths.items():
        command = command.replace(word, str(path))
    without(library)
    result = call(*command.split())
    assert result.code == 2, result.err
    line = result.err.splitlines()[-1]
    end = f"needs {library}: pip install 'sedd-fast[{EXTRA_OF[library]}]'"
    assert re.fullmatch(rf"sedd-fast: .* {re.escape(end)}", line), line
    assert library != "accelerate" or not (tmp_path / "new").exists()


def test_without_any_of_them_the_rest_works(call, without, run_dir, text_file):
    without(*EXTRA_OF)
    assert call("sample", "-m", run_dir, "-n", 1, "-s", 2).code == 0
    assert call("infill", "-m", run_dir, "--prefix", "the ", "-s", 2).code == 0
    assert call("eval", text_file, "-m", run_dir, "--samples", 2).code == 0
    result = call("info")
    assert result.code == 0
    for extra in ("train", "plot", "eval", "wandb"):
        assert f"{', '.join(EXTRAS[extra])}: pip install 'sedd-fast[{extra}]'" in result.out
    assert set(missing_libraries()) == set(EXTRAS)


def test_pictures_are_left_out(call, without, run_dir, tmp_path):
    without("matplotlib")
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "curves.png").unlink(missing_ok=True)
    trained = call("train", "--resume", run, "training.n_iters=26")
    grid = ("--steps", 2, "--methods", "euler", "-n", 2, "--batch-size", 2)
    compared = call("tradeoff", "-m", run, *grid)
    for result, picture in ((trained, "curves.png"), (compared, "tradeoff.png")):
        assert result.code == 0, result.err
        assert "matplotlib: pip install 'sedd-fast[plot]'" in result.err
        assert picture not in result.out
    assert json.loads((run / "tradeoff.json").read_text())["points"]


def test_functions_name_the_extra(without, run_dir, tmp_path, monkeypatch):
    from sedd_fast.evaluate.plots import two_panels

    without(*EXTRA_OF)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    calls: dict[str, Callable[[], object]] = {
        "train": lambda: resume(run_dir),
        "plot": two_panels,
        "transformers": lambda: TransformersTokenizer.from_pretrained("gpt2"),
    }
    for extra, function in calls.items():
        with pytest.raises(MissingLibraryError, match=rf"pip install 'sedd-fast\[{extra}\]'"):
            function()
    with pytest.raises(MissingLibraryError, match=r"sedd-fast\[train\]'$"):
        named_rows("ptb")  # no word of the hub, which was not asked
    with pytest.raises(ValueError, match=r"hub gave \(HF_HUB_OFFLINE is set.* the network"):
        load_from_hub("no-such/tokenizer")


def test_a_library_that_lacks_another_one(monkeypatch, tmp_path):
    (tmp_path / "broken_library.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingLibraryError, match=r"needs broken_library .*'no_such_library'"):
        import_library("broken_library", "train", "training")


def test_the_extras_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def packages(requirements: list[str]) -> set[str]:
        names = (re.match(r"[\w-]+", each)[0] for each in requirements)
        return {"mauve" if name == "mauve-text" else name for name in names}

    declared = {x: packages(names) for x, names in project["optional-dependencies"].items()}
    for extra, names in EXTRAS.items():
        assert set(names) <= declared[extra], extra
    assert not packages(project["dependencies"]) & set(EXTRA_OF)
    [everything] = project["optional-dependencies"]["all"]
    assert set(re.findall(r"[\w-]+", everything.partition("[")[2])) == set(EXTRAS)
    # As metadata has them: older versions of pip know an extra by no other spelling.
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", x) for x in project["optional-dependencies"])
