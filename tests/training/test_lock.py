"""One process at a time in a run directory."""

import json
import os
import socket
import subprocess
import sys

import pytest

from helpers.tiny_run import settings, write_text
from sedd_fast.cli import main
from sedd_fast.training import lock
from sedd_fast.training.api import resume, train
from sedd_fast.training.lock import NAME, run_lock
from sedd_fast.training.run_directory import RunDirectory

#: Holds the lock of a directory until its standard input ends.
OWNER = """
import runpy, sys
from pathlib import Path
run_lock = runpy.run_path(sys.argv[2])["run_lock"]
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture
def without_flock(monkeypatch):
    """A file system without locks."""
    if lock.fcntl is not None:

        def refuse(descriptor, operation):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)


def test_another_process_is_refused_and_a_killed_one_is_not_waited_for(text_file, tmp_path, capsys):
    run = tmp_path / "run"
    train(settings(text_file, run, "training.n_iters=1"))
    staged = RunDirectory(run).checkpoint(5, staging=True)
    staged.mkdir()  # the owner is writing it
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(run), lock.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert owner.stdout.readline() == "held\n"
        assert main(["train", "--resume", str(run)]) == 2
        [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("sedd-fast: ")]
        assert f"{run} is in use by process {owner.pid} on {socket.gethostname()}; wait" in line
        assert staged.is_dir()
        config = settings(text_file, run, "training.n_iters=1")
        with pytest.raises(ValueError, match=f"in use by process {owner.pid}"):
            train(config)
    finally:
        owner.kill()
        owner.communicate()
    assert (run / NAME).is_file()
    assert resume(run, ["training.n_iters=2"]).step == 2
    assert not (run / NAME).exists()
    assert not staged.exists()


@pytest.mark.parametrize("kind", ["with flock", "without"])
def test_a_second_run_in_this_process_is_refused_until_the_first_ends(
    kind, text_file, tmp_path, request
):
    if kind == "without":
        request.getfixturevalue("without_flock")
    run, refused = tmp_path / "run", []

    def again(info):
        for start in (lambda: resume(run), lambda: train(settings(text_file, run))):
            with pytest.raises(ValueError, match="in use by a run of this process") as caught:
                start()
            refused.append(str(caught.value))

    train(settings(text_file, run, "training.n_iters=1"), on_step=again)
    assert len(refused) == 2
    assert not (run / NAME).exists()
    with pytest.raises(RuntimeError, match="callback"):
        resume(
            run,
            ["training.n_iters=2"],
            on_step=lambda info: (_ for _ in ()).throw(RuntimeError("callback")),
        )
    assert resume(run, ["training.n_iters=2"]).step == 2


def test_without_flock_the_named_owner_decides(without_flock, tmp_path):
    path, dead = tmp_path / NAME, subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    for pid, host in ((os.getppid(), here), (dead.pid, "another")):
        path.write_text(json.dumps({"pid": pid, "host": host}))
        with pytest.raises(ValueError, match=rf"process {pid} on {host}.*remove .*{NAME}"):
            run_lock(tmp_path).__enter__()
        assert path.exists()
    for stale in (json.dumps({"pid": dead.pid, "host": here}), "", "{}", '{"pid": 1e999}'):
        path.write_text(stale)
        with run_lock(tmp_path):
            assert json.loads(path.read_text()) == {"pid": os.getpid(), "host": here}
        assert not path.exists()


def test_a_lock_that_is_removed_while_it_is_opened_is_taken_anew(tmp_path, monkeypatch):
    path, opened = tmp_path / NAME, os.open

    def open_and_lose(name, *args):
        descriptor = opened(name, *args)
        if not lost:
            lost.append(name)
            path.unlink()  # its owner ended just now
        return descriptor

    lost: list[str] = []
    monkeypatch.setattr(os, "open", open_and_lose)
    with run_lock(tmp_path):
        assert path.is_file()  # another process would find the lock
    assert lost


def test_a_refused_start_leaves_no_directory(text_file, tmp_path):
    config = settings(text_file, tmp_path / "a/b/run", "data.train=./none.txt")
    with pytest.raises(ValueError, match="no file"):
        train(config)
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    with run_lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()
