"""Wrong input: one line, exit code 2, no traceback."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sedd_fast.cli import errors, main
from sedd_fast.cli.output import save_json
from sedd_fast.training.progress import DiskFullError, TrainingInterrupted


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "no such command 'trian'. Did you mean 'train'? see sedd-fast --help"),
        (["train", "--preste", "tiny"], "no such option: --preste"),
        (["train", "--preste", "tiny"], "--preset"),
        (["eval"], "--model"),
        (["sample", "--model", "x", "--steps", "many"], "--steps"),
        (["sample", "--model", "x", "--steps", "0"], "--steps"),
        (["sample", "--model", "x", "--method", "midpoint"], "analytic"),
        (["sample", "--model", "/no/such/run"], "no directory '/no/such/run'; give one that"),
        (["sample", "--model", "x", "--device", "tpu"], "device: expected auto, cpu, cuda"),
        (["sample", "--model", ""], "model: got an empty name"),
        (["eval", "--model", "x", "--mode", "best"], "normalised"),
        (["train", "missing.yaml"], "config: no file 'missing.yaml'"),
        (["train", "some words"], "expected a .yaml file or KEY=VALUE"),
        (["train", "optim.lrr=1"], "did you mean optim.lr"),
        (["train", "optim.lr=fast"], "optim.lr"),
        (["train", "graph.type=masked"], "expected one of absorbing"),
        (["train", "data.train=./none.txt"], "no file './none.txt'"),
        (
            ["train", "--preset", "huge"],
            "value for '--preset': 'huge' is not one of 'tiny', 'small', 'me",
        ),
        (["train", "--resume", "/no/run"], "holds no run"),
        (["train", "--resume", "r", "--preset", "tiny"], "--preset cannot be combined with it"),
        (["demo", "--minutes", "-1"], "minutes: expected a positive number"),
        (["info", "extra"], "extra"),
    ],
)
def test_wrong_input_is_one_line(args, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    # A training display may have reported what it was about to do.
    lines = [line for line in result.err.splitlines() if not line.startswith("training ")]
    assert result.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("sedd-fast: ")
    assert message in lines[0]
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not list(tmp_path.glob("runs/*/config.yaml"))


def test_debug_shows_the_traceback(call, monkeypatch):
    monkeypatch.setenv(errors.DEBUG, "1")
    result = call("sample", "--model", "/no/such/run")
    assert result.code == 2
    assert "Traceback" in result.err


def test_a_full_disk_is_no_wrong_input(capsys, tmp_path, monkeypatch):
    """In the output, in a file, and within a library that explains it by an error of its own."""

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=full, flush=full, encoding="utf-8"))
    codes = [main(words.split()) for words in ("--version", "--help", "sample --help", "info")]
    monkeypatch.undo()
    assert codes == [errors.FAILED] * 4
    assert (
        capsys.readouterr().err.splitlines()
        == [
            "sedd-fast: the output: No space left on device; make room there, or name another place"
        ]
        * 4
    )
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space") as found:
        save_json({}, tmp_path / "result.json")
    assert errors.report(found.value) == errors.FAILED
    assert f"{tmp_path}/result.json: No space left" in capsys.readouterr().err
    quota = ValueError("data: it could not be loaded")
    quota.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert errors.report(quota) == errors.report(quota.__cause__) == errors.FAILED
    assert errors.report(ValueError("data: it could not be loaded")) == errors.BAD_INPUT


def test_backend_that_cannot_run_is_one_line(call, monkeypatch):
    monkeypatch.setenv("SEDD_FAST_BACKEND", "fortran")
    result = call("sample", "--model", "x")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "SEDD_FAST_BACKEND" in result.err


def test_as_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sedd_fast", "eval", "--model", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_an_error_that_cannot_be_shown_keeps_its_exit_code(monkeypatch):
    class Closed:
        def write(self, text):
            raise OSError(5, "Input/output error")

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Closed())
    assert errors.report(TrainingInterrupted(Path("run"), 3, "resume")) == errors.INTERRUPTED
    assert errors.report(DiskFullError("no space left")) == errors.FAILED
