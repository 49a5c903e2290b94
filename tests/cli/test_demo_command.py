"""`sedd-fast demo`, in seconds."""

import json

import pytest

from sedd_fast.text.demo import demo_directory, is_interrupted
from sedd_fast.training.run_directory import RunDirectory


def test_demo_in_seconds(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("demo", "--minutes", "0.01")
    assert result.code == 1
    assert " too few: the model is no better than the unigram model" in result.out
    assert "sedd-fast train --resume runs/demo training.max_minutes=5.01" in result.out
    run = tmp_path / "runs" / "demo"
    record = json.loads((run / "demo.json").read_text())
    assert record["finished"]
    assert record["below_unigram"] == pytest.approx(
        record["baselines"]["unigram"] - record["bits_per_char"]
    )
    assert record["filled"].startswith("The")  # the space belongs to the gap
    assert record["filled"].endswith(" is raised.\n")
    assert "passages spread over the text" in record["held_out"]
    shares = record["known_words"]
    assert list(shares) == ["held-out text", "SEDD, this model", "autoregressive"]
    assert 0 < shares["SEDD, this model"] < shares["held-out text"] < 1
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert RunDirectory(tmp_path / "runs" / "demo" / "ar").export.is_dir()
    for word in (
        "uniform",
        "unigram",
        "5-gram",
        "autoregressive",
        "spread over",
        "sample 3 of 3",
        "sedd-fast infill",
        "curves.png",
    ):
        assert word in result.out
    assert demo_directory().name == "demo-2"
    again = call("demo", "--run-dir", "runs/demo")
    assert (again.code, len(again.err.splitlines())) == (2, 1)


def test_interrupted_demo_is_resumed(tmp_path):
    (tmp_path / "demo.json").write_text('{"finished": false}')
    assert is_interrupted(tmp_path)
    assert demo_directory(tmp_path) == tmp_path
