"""Kills at every write, full disks, signals, foreign files and links in a run directory."""

import errno
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from helpers.tiny_run import losses, settings, write_text
from sedd_fast.cli import main
from sedd_fast.models.sedd import SEDD
from sedd_fast.training import metrics, run_directory
from sedd_fast.training.api import is_finished, resume, train
from sedd_fast.training.interrupt import StopRequest
from sedd_fast.training.progress import DiskFullError, TrainingInterrupted, lack_of_space
from sedd_fast.training.run_directory import RunDirectory, write_directory

SHORT = ["training.snapshot_freq=1", "training.eval_freq=1", "training.keep_last=1"]


class Killed(BaseException):
    """Stands for the death of the process: nothing in the package catches it."""


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def begun(text_file, tmp_path_factory):
    """A run of one step."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    return train(settings(text_file, run_dir, *SHORT, "training.n_iters=1")).run_dir


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory):
    """A run of three steps that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return train(settings(text_file, run_dir, *SHORT, "training.n_iters=3")).run_dir


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(run_dir) / "export/model.safetensors")


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert is_finished(run_dir)
    ours, theirs = weights(run_dir), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(run_dir) == losses(other)
    assert RunDirectory(run_dir).exported_step() == 3
    assert not list(Path(run_dir).rglob(".*"))


RENAMES = [(os, "replace"), (shutil, "rmtree")]


def dying(patch: pytest.MonkeyPatch, functions: list, call: int) -> list[str]:
    """Let the call of that number to one of the functions die; returns the calls so far."""
    calls: list[str] = []

    def instead_of(owner, name):
        function = getattr(owner, name)

        def called(*args, **options):
            calls.append(name)
            if len(calls) == call:
                raise Killed
            return function(*args, **options)

        patch.setattr(owner, name, called)

    for owner, name in functions:
        instead_of(owner, name)
    return calls


@pytest.mark.parametrize(
    "functions", [RENAMES, pytest.param([(os, "fsync")], marks=pytest.mark.slow)]
)
def test_killed_at_any_write_of_a_resumed_run(functions, begun, whole, tmp_path, monkeypatch):
    # The export of step 1 is there: a stale one must be replaced at the end.
    call, more = 0, ["training.n_iters=3", "training.snapshot_freq=0"]
    while True:
        call += 1
        run_dir = tmp_path / str(call)
        shutil.copytree(begun, run_dir)
        with monkeypatch.context() as patch:
            calls = dying(patch, functions, call)
            try:
                resume(run_dir, more)
            except Killed:
                died = True
            else:
                died = False
        if not died:
            break
        assert not is_finished(run_dir) or RunDirectory(run_dir).exported_step() is not None
        resume(run_dir, more)
        assert_same_run(run_dir, whole)
    assert len(calls) == call - 1 > 10


@pytest.mark.parametrize("call", [1, 2, 3])  # tokenizer, settings, checkpoint
def test_killed_at_the_first_renames_of_a_new_run(call, text_file, whole, tmp_path, monkeypatch):
    run_dir, replace, calls = tmp_path / "run", os.replace, []
    config = settings(text_file, run_dir, *SHORT, "training.n_iters=3")

    def dies(*args):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            train(config)
    resume(run_dir) if (run_dir / "config.yaml").is_file() else train(config)
    assert_same_run(run_dir, whole)


def test_finished_run_without_its_export_writes_it_again(whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    SEDD.from_pretrained(whole)  # the file with the step does not disturb
    for spoil in (
        lambda export: shutil.rmtree(export),
        lambda export: (export / "step.json").unlink(),  # of a run of an older version
        lambda export: (export / "step.json").write_text('{"step": 2}'),
        lambda export: (export / "model.safetensors").unlink(),
        lambda export: (export / "step.json").write_text("[" * 100_000),
    ):
        spoil(run_dir / "export")
        assert not is_finished(run_dir)
        assert resume(run_dir).step == 3
        assert_same_run(run_dir, whole)


def test_an_export_of_a_removed_checkpoint_is_not_kept(begun, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(begun, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(
            "sedd_fast.training.loop.write_export", lambda *args: (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            resume(run_dir)
    assert not is_finished(run_dir)
    resume(run_dir)
    assert is_finished(run_dir)


# Full disks


def full(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_rust(*args, **options):
    raise Exception("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("loop.save_config", 1),
        ("loop.save_file", 1),
        ("loop.write_export", 3),  # the checkpoint of the last step was written before
        ("metrics.MetricsLog.write", 1),
        ("metrics.MetricsLog.sync", 1),
        ("metrics.write_text", 1),
    ],
)
def test_full_disk_is_one_line_that_names_the_checkpoint(
    place, step, begun, tmp_path, monkeypatch, capsys
):
    run_dir = tmp_path / "run"
    shutil.copytree(begun, run_dir)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that was cut off is dropped
    more = ["training.n_iters=3", "training.snapshot_freq=0"]
    with monkeypatch.context() as patch:
        patch.setattr(f"sedd_fast.training.{place}", full)
        assert main(["train", "--resume", str(run_dir), *more]) == 1
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sedd-fast: ")]
    assert len(lines) == 1
    checkpoint = RunDirectory(run_dir).latest()
    assert checkpoint is not None
    assert checkpoint.name == f"step-{step:08d}"
    assert "no space left" in lines[0]
    assert f"the checkpoint {checkpoint} is intact" in lines[0]
    assert f"sedd-fast train --resume {run_dir}" in lines[0]
    assert not list(run_dir.rglob(".*"))
    assert resume(run_dir, more).step == 3


def test_full_disk_in_the_tokenizer_of_a_new_run(text_file, tmp_path, monkeypatch):
    config = settings(text_file, tmp_path / "run", "training.n_iters=1")
    with monkeypatch.context() as patch:
        patch.setattr("sedd_fast.data.tokenizers.CharTokenizer.save", full_in_rust)
        with pytest.raises(DiskFullError, match="no space left on device; it had no checkpoint"):
            train(config)
    assert train(config).step == 1


def test_full_disk_for_the_picture_of_a_finished_run(whole, monkeypatch, capsys):
    monkeypatch.setattr("sedd_fast.training.plots.plot_training", full)
    assert main(["train", "--resume", str(whole)]) == 0
    assert "the run is complete, but its picture" in capsys.readouterr().err


def test_full_disk_in_tensorboard(text_file, tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def hook(error):
        shown.append(error)

    shown, write, calls, room = [], RecordWriter.write, [], [1000]

    def full_later(self, data):
        calls.append(data)
        full() if len(calls) > room[0] else write(self, data)

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(RecordWriter, "write", full_later)
    more = "log.tensorboard=true", "training.n_iters=2"
    train(settings(text_file, tmp_path / "whole", *more))
    for number in (3, len(calls) - 1):  # in the middle, and for the last record
        calls, room = [], [number]
        with pytest.raises(DiskFullError, match="no space left"):
            train(settings(text_file, tmp_path / str(number), *more))
    assert not shown  # TensorBoard's thread
    assert threading.excepthook is hook


def test_lack_of_space_is_known_in_every_form():
    reason = os.strerror(errno.ENOSPC)
    hidden = RuntimeError("[enforce fail at inline_container.cc:672]")
    hidden.__context__ = OSError(errno.ENOSPC, reason)
    assert lack_of_space(OSError(errno.ENOSPC, reason)) == reason
    assert lack_of_space(Exception(f"while serializing: {reason} (os error 28)")) == reason
    assert lack_of_space(hidden) == reason
    assert lack_of_space(OSError(errno.ENOENT, "no file")) is None
    assert lack_of_space(ValueError("(os error 2)")) is None


# Signals


def test_a_closed_terminal_saves(text_file, whole, tmp_path):
    def lost(info):
        os.kill(os.getpid(), signal.SIGHUP)
        raise OSError(errno.EIO, "Input/output error")  # writing to the terminal

    def ours(number, frame):
        pass

    run_dir, before = tmp_path / "run", signal.signal(signal.SIGHUP, ours)
    try:
        with pytest.raises(TrainingInterrupted):
            train(settings(text_file, run_dir, *SHORT, "training.n_iters=3"), on_step=lost)
        assert signal.getsignal(signal.SIGHUP) is ours
    finally:
        signal.signal(signal.SIGHUP, before)
    assert RunDirectory(run_dir).steps() == [2]
    resume(run_dir)
    assert_same_run(run_dir, whole)


def test_an_error_of_a_callback_is_not_hidden(text_file, tmp_path):
    def fails(info):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        train(settings(text_file, tmp_path / "run", "training.n_iters=2"), on_step=fails)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


# Files of others


def test_cleaning_removes_only_what_a_run_left(tmp_path):
    run = RunDirectory(tmp_path)
    ours = [".export", ".export-old", ".tokenizer", "checkpoints/.step-00000003"]
    for name in [*ours, ".export-notes", "checkpoints/.step-by-step"]:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x")
    files = [".export-notes.txt", ".tokenizer-old", "checkpoints/.step-notes", "metrics.jsonl"]
    for name in files:
        (tmp_path / name).write_text("mine")
    (tmp_path / "checkpoints/.step-00000004").symlink_to(tmp_path / ".export-notes")
    run.clean()
    run.clean()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {
        "checkpoints", *files, ".export-notes", ".export-notes/file", "checkpoints/.step-by-step",
        "checkpoints/.step-by-step/file",
    }  # fmt: skip


def test_linked_export_and_checkpoint(begun, whole, tmp_path):
    run_dir, disk = tmp_path / "run", tmp_path / "disk"
    shutil.copytree(begun, run_dir)
    disk.mkdir()
    for name in ("export", "checkpoints/step-00000001"):
        shutil.move(run_dir / name, disk)
        (run_dir / name).symlink_to(disk / Path(name).name)
    (disk / ".export").mkdir()  # a killed process was writing there
    resume(run_dir, ["training.n_iters=3"])
    assert (run_dir / "export").is_symlink()
    assert_same_run(run_dir, whole)
    assert sorted(p.name for p in disk.iterdir()) == ["export", "step-00000001"]
    (run_dir / "export").unlink()
    (run_dir / "export").symlink_to(disk / "elsewhere")  # which is not there yet
    resume(run_dir)
    assert_same_run(run_dir, whole)


def test_a_file_in_the_place_of_the_export_is_named(begun, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(begun, run_dir)
    shutil.rmtree(run_dir / "export")
    (run_dir / "export").write_text("mine")
    with pytest.raises(ValueError, match=r"export is not a directory; move that file away"):
        resume(run_dir)
    assert (run_dir / "export").read_text() == "mine"


def test_an_interrupted_replacement_is_repeated(tmp_path):
    final = tmp_path / "export"
    for content in ("first", "second"):
        (tmp_path / ".export").mkdir(exist_ok=True)
        write_directory(final, lambda folder, text=content: (folder / "x").write_text(text))
        assert (final / "x").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_repeated_record_is_written_once(text_file, begun, tmp_path):
    run = RunDirectory(tmp_path)
    config = settings(text_file, tmp_path)
    records = [{"step": 1, "loss": 2.0}, {"step": 1, "held_out_loss": 3.0}]
    for _ in range(2):
        with metrics.MetricsLog(run, config, 1) as log:
            log.write(records[-1]) if run.metrics.stat().st_size else [*map(log.write, records)]
    assert metrics.read_metrics(run.metrics) == records
    assert run_directory.RunDirectory(begun).exported_step() == 1
