"""`sedd-fast train`: its report, and Ctrl-C."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from helpers.small_run import SMALL, train_small
from sedd_fast.training.api import outlook
from sedd_fast.training.metrics import read_metrics


def test_train_explains_how_to_train_on_a_text(text_file, call):
    assert f"data.train={text_file}" in call("train", text_file).err


def test_train_reports_its_files(run_dir, call, tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    result = call("train", "--resume", run_dir, "training.n_iters=30")
    assert result.code == 0
    assert "Held out" in result.out
    for name in ("export", "checkpoints/step-00000030", "metrics.jsonl", "curves.png"):
        assert (run_dir / name).exists()
        assert str(run_dir / name) in result.out
    assert f"sedd-fast train --resume {run_dir} training.n_iters=60" in result.out
    assert "step 30 of 30:" in result.err
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == 30


def test_resuming_says_what_the_learning_rate_will_do(run_dir, call, tmp_path):
    run = shutil.copytree(run_dir, tmp_path / "run")  # its preset has the cosine
    stretch = "stretched from 100% to 50% done, so the learning rate rises from 0 to 0.00075 at"
    ended = call("train", "--resume", run)
    assert ended.code == 0
    assert "nothing is left to train: the run ended at step 25; " in ended.err
    assert f"to go on: sedd-fast train --resume {run} training.n_iters=50 (opt" in ended.err
    assert stretch in ended.err
    assert "nothing is left" not in (longer := outlook(run, ["training.n_iters=50"]))
    assert stretch in longer
    assert outlook(run, ["training.n_iters=60", "optim.schedule=constant"]) is None
    assert "schedule=cosine" not in outlook(run, ["optim.schedule=constant"])
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(": 25", ": 30"))
    assert outlook(run) is None  # interrupted, and resumed with its own settings


@pytest.mark.parametrize(
    ("limits", "given"),
    [
        (["training.max_minutes=1e-6"], []),  # less than the first step takes
        (["training.max_minutes=1e-6", "training.n_iters=1"], ["optim.lr=1e-5"]),
        (["training.max_minutes=0"], ["data.valid=a b.txt"]),
    ],
)
def test_the_command_to_go_on_trains(limits, given, text_file, tmp_path, capsys):
    run = train_small(tmp_path / "run", text_file, *limits)
    report = capsys.readouterr().out
    for line in (report[report.index("train longer") :], outlook(run, given)):
        command = line.partition(f"--resume {run} ")[2].partition(" (opt")[0].partition("\n")[0]
        assert "nothing is left" not in (outlook(run, shlex.split(command)) or "")
    kept = [word for word in given if not word.startswith("training")]
    assert shlex.split(command)[: len(kept)] == kept


def test_a_schedule_that_was_another_is_set(text_file, tmp_path):
    run = train_small(tmp_path / "run", text_file, "optim.schedule=constant", "training.n_iters=2")
    said = outlook(run, ["optim.schedule=cosine", "training.n_iters=4"])
    assert said.startswith("optim.schedule=cosine is set, at 50% done, so the learning rate falls")
    assert "is set, at 50% done" in outlook(run, ["optim.schedule=cosine"])


#: The command line in a process that presses its own Ctrl-C after its first metrics line.
INTERRUPTED = """
import os, signal, sys
from sedd_fast.cli import main
from sedd_fast.training.metrics import MetricsLog

write = MetricsLog.write

def write_and_interrupt(self, record):
    write(self, record)
    os.kill(os.getpid(), signal.SIGINT)

MetricsLog.write = write_and_interrupt
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_is_one_line_and_130(text_file, tmp_path):
    run = tmp_path / "run"
    chosen = [*SMALL, "training.n_iters=1000000", f"data.train={text_file}"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train", *chosen, "--run-dir", str(run)],
        stderr=subprocess.PIPE, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("sedd-fast: stopped after step ")
    assert f"resume with: sedd-fast train --resume {run}" in done.stderr
    assert "Traceback" not in done.stderr
