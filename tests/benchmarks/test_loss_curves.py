"""The benchmark that compares training through the fused head with training through log scores."""

import json
import random

import pytest
import torch

from benchmarks.studies import loss_curves

SMALL = (
    "model.hidden_size=16", "model.n_heads=2", "model.n_blocks=1", "model.length=32",
    "model.cond_dim=8", "training.batch_size=8", "training.eval_sequences=8",
    "training.cpu=true", "optim.warmup=5", "optim.lr=1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat. ", "dogs ", "ran\n"]
    path = tmp_path_factory.mktemp("curves") / "words.txt"
    path.write_text("".join(random.Random(0).choices(words, k=1500)))
    return path


def test_differences_by_hand():
    start = torch.zeros(2, dtype=torch.float64)
    dense = loss_curves.TrainingRun(torch.tensor([4.0, 2.0]), 2.0, start, torch.tensor([3.0, 4.0]))
    other = loss_curves.TrainingRun(torch.tensor([5.0, 2.0]), 1.9, start, torch.tensor([3.0, 4.5]))
    assert other.differences(dense) == pytest.approx(
        {"mean_loss": 0.125, "max_loss": 0.25, "held_out": 0.05, "weights": 0.1}
    )


def test_fused_differs_from_dense_by_rounding(text, tmp_path, capsys):
    record, picture = tmp_path / "curves.json", tmp_path / "curves.png"
    arguments = ["--data", str(text), "--steps", "40", "--dtype", "fp32", *SMALL]
    pytest.importorskip("matplotlib")
    assert loss_curves.main([*arguments, "--json", str(record), "--plot", str(picture)]) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    written = json.loads(record.read_text())
    runs = written["runs"]["fp32"]
    assert set(runs) == set(loss_curves.VARIANTS)
    assert runs["dense"]["from_dense"] == dict.fromkeys(runs["dense"]["from_dense"], 0)
    apart = {name: found["from_dense"]["mean_loss"] for name, found in runs.items()}
    assert 0 < apart["fused"] < 1e-4
    assert apart["seed"] > 100 * apart["fused"]
    dense = runs["dense"]["losses"]
    assert sum(dense[-10:]) < sum(dense[:10])
    shown = capsys.readouterr().out
    for name in loss_curves.VARIANTS:
        assert f"fp32 {name}" in shown


@pytest.mark.parametrize("objective", ["masked_cross_entropy", "d3pm"])
def test_a_cross_entropy_differs_from_that_of_log_scores_by_rounding(text, capsys, objective):
    settings = [f"data.train={text}", *SMALL, f"objective.type={objective}"]
    found = loss_curves.measure(settings, 8, ["fp32"])
    runs = found["runs"]["fp32"]
    assert runs["fused"]["from_dense"]["max_loss"] < 1e-4
    assert runs["seed"]["from_dense"]["mean_loss"] > 1e-3
    loss_curves.show(found)
    assert f"{objective.replace('_', ' ')}; differences" in capsys.readouterr().out


def test_other_noise_is_other_noise_whatever_the_seed(text):
    runs = loss_curves.measure([f"data.train={text}", *SMALL, "training.seed=1"], 2, ["fp32"])
    assert runs["runs"]["fp32"]["seed"]["from_dense"]["mean_loss"] > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "int8"], "--dtype: expected some of fp32, bf16"),
        (["--steps", "0"], "--steps: a positive whole number is needed"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--data", "./none.txt"], "data: no file './none.txt'"),
        (["optim.lrr=1"], "did you mean optim.lr"),
        (["data.held_out=0"], "data.held_out is 0"),
        (["objective.type=concrete_score"], "=concrete_score of model.kind=sedd has no fused head"),
        (["model.kind=ar"], "of model.kind=ar has no fused head"),
    ],
)
def test_wrong_option_is_one_line(arguments, message, capsys):
    try:
        code = loss_curves.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
