"""Training processes that are killed: what is resumed equals a run that was never stopped."""

import json
import os
import signal
import subprocess
import sys

import pytest

from helpers.tiny_run import losses, settings, write_text
from sedd_fast.training.api import resume, train
from sedd_fast.training.config import save_config
from sedd_fast.training.run_directory import RunDirectory

#: For each argument [settings, module or module:class, function, n, "before" or "after"] in JSON, a
#: fork trains with the settings of that file, and kills itself before or after the n-th call of the
#: function. One process imports everything; then it prints the exit code of each fork.
CHILD = """
import importlib, json, os, signal, sys
import accelerate, torch._dynamo  # training imports them late, and would in every fork
from sedd_fast.training.api import train
from sedd_fast.training.config import load_config

def die_at(function, count, when):
    calls = 0
    def called(*args, **options):
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return called

for argument in sys.argv[1:]:
    settings, module, name, count, when = json.loads(argument)
    if fork := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
        continue
    place, _, owner = module.partition(":")
    holder = importlib.import_module(place)
    holder = getattr(holder, owner) if owner else holder
    setattr(holder, name, die_at(getattr(holder, name), count, when))
    train(load_config(files=[settings]))
    os._exit(0)
"""
TRAIN = "sedd_fast.training"


#: What is killed where, and the checkpoints that are then there.
KILLS = {
    "first metrics": ((f"{TRAIN}.metrics:MetricsLog", "write", 1, "after"), []),
    "between checkpoints": ((f"{TRAIN}.step:Learner", "apply", 5, "after"), [3]),
    "random state without weights": ((f"{TRAIN}.loop", "save_file", 2, "before"), []),
    "old checkpoints removed": ((f"{TRAIN}.metrics:MetricsLog", "write", 14, "before"), [6, 9]),
}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def killed(text_file, tmp_path_factory):
    """Runs that were killed, by their names in KILLS."""
    folder, arguments = tmp_path_factory.mktemp("killed"), []
    for name, (where, _) in KILLS.items():
        file = folder / f"{name}.yaml"
        save_config(settings(text_file, folder / name, "training.keep_last=2"), file)
        arguments.append(json.dumps([str(file), *where]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), done.stderr
    return {name: folder / name for name in KILLS}


@pytest.fixture(scope="module")
def undisturbed(text_file, tmp_path_factory):
    """What a run that was never stopped logged."""
    run = train(settings(text_file, tmp_path_factory.mktemp("runs") / "whole"))
    return losses(run.run_dir)


@pytest.mark.parametrize("name", KILLS)
def test_killed_run_resumes_as_if_never_stopped(name, killed, undisturbed):
    run_dir, (_, checkpoints) = killed[name], KILLS[name]
    assert RunDirectory(run_dir).steps() == checkpoints
    resume(run_dir)
    assert not list(run_dir.rglob(".*"))
    ours, theirs = losses(run_dir), undisturbed
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    # Another process may run another number of threads, which sums in another order.
    assert [e[2] for e in ours] == pytest.approx([e[2] for e in theirs], rel=1e-5)
