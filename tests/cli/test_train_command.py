"""`sedd-fast train`: what it says, and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

from helpers.small_run import SMALL
from sedd_fast.train.metrics import read_metrics


def test_train_names_the_way_to_train_on_a_text(text_file, call):
    assert f"data.train={text_file}" in call("train", text_file).err


def test_train_tells_where_things_lie(run_dir, call, tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    result = call("train", "--resume", run_dir, "training.n_iters=30")
    assert result.code == 0
    assert "Held out" in result.out
    for name in ("export", "checkpoints/step-00000030", "metrics.jsonl", "curves.png"):
        assert (run_dir / name).exists()
        assert str(run_dir / name) in result.out
    assert f"sedd-fast train --resume {run_dir} training.n_iters=60" in result.out
    assert "step 30:" in result.err
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == 30


def test_ctrl_c_is_one_line_and_130(text_file, tmp_path):
    run = tmp_path / "run"
    slow = [*SMALL, "training.n_iters=1000000", f"data.train={text_file}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sedd_fast", "train", *slow, "--run-dir", str(run)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("sedd-fast: stopped after step ")
    assert f"sedd-fast train --resume {run}" in err
    assert "Traceback" not in err
