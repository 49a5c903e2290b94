"""Every objective in the trainer: it learns, resumes, and exports a network that commands use."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.tiny_run import losses, settings, write_letters
from sedd_fast.cli import main
from sedd_fast.models import networks
from sedd_fast.names import OBJECTIVES
from sedd_fast.training.api import resume, train
from sedd_fast.training.config import changed, config_from_dict, load_config
from sedd_fast.training.metrics import read_metrics
from sedd_fast.training.networks import new_network

CASES = [
    ("absorbing", "masked_cross_entropy", {"over": "t"}, sf.PosteriorSEDD),
    ("absorbing", "masked_cross_entropy", {"over": "lambda"}, sf.PosteriorSEDD),
    ("absorbing", "d3pm", {"steps": 50}, sf.PosteriorSEDD),
    ("uniform", "d3pm", {"steps": 50}, sf.PosteriorSEDD),
    ("absorbing", "score_entropy", {}, sf.SEDD),
    ("uniform", "concrete_score", {}, sf.SEDD),
]
each_case = pytest.mark.parametrize(
    ("graph", "name", "own", "kind"), CASES, ids=[f"{c[1]}-{c[0]}-{c[2]}" for c in CASES]
)
CLASSES = {
    "score_entropy": sf.ScoreEntropyLoss,
    "masked_cross_entropy": sf.MaskedCrossEntropy,
    "d3pm": sf.D3PMLoss,
    "concrete_score": sf.ConcreteScoreMatching,
}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("text") / "letters.txt")


def overrides(graph: str, name: str, own: dict[str, Any]) -> list[str]:
    chosen = [f"objective.{key}={value}" for key, value in own.items()]
    return [f"graph.type={graph}", f"objective.type={name}", *chosen]


@each_case
def test_it_learns_and_exports(graph, name, own, kind, text_file, tmp_path):
    # At 5e-3 this posterior may become too sure for float32 scores at small noise.
    lr = "2e-3" if (graph, name) == ("uniform", "d3pm") else "5e-3"
    more = [
        "training.n_iters=60", "training.batch_size=16", "training.eval_sequences=32",
        "training.snapshot_freq=0", "training.ema=0.9", f"optim.lr={lr}",
    ]  # fmt: skip
    result = train(settings(text_file, tmp_path / "run", *overrides(graph, name, own), *more))
    held_out = [value for _, key, value in losses(result.run_dir) if key == "held_out_loss"]
    assert len(held_out) == 15
    # Of fixed texts, times and noise. Little noise has a large part in concrete score matching.
    assert held_out[-1] < (0.85 if name == "concrete_score" else 0.65) * held_out[0]
    model = networks.load(result.export)
    assert type(model) is kind
    assert model.graph.kind == graph
    x_0 = torch.randint(model.config.vocab_size, (2, 16))
    bound = sf.likelihood_bound(model, x_0, model.graph, model.noise, 8)
    assert bound.nats.isfinite().all()
    tokens = sf.sample(model, model.graph, model.noise, (2, 16), steps=4)
    assert int(tokens.max()) < model.config.vocab_size


@each_case
def test_it_resumes_as_if_never_stopped(graph, name, own, kind, text_file, tmp_path):
    chosen = [*overrides(graph, name, own), "optim.schedule=constant"]
    whole = train(settings(text_file, tmp_path / "whole", *chosen, "training.n_iters=6"))
    train(settings(text_file, tmp_path / "parts", *chosen, "training.n_iters=3"))
    saved = torch.load(tmp_path / "parts/checkpoints/step-00000003/state.pt", weights_only=True)
    expected = {"over": "t", "steps": 1000, "per_token": False, **own, "type": name}
    assert saved["config"]["objective"] == expected
    resume(tmp_path / "parts", ["training.n_iters=6"])
    of_steps = [
        [entry for entry in losses(run) if not entry[1].startswith("held_out")]
        for run in (whole.run_dir, tmp_path / "parts")
    ]
    assert of_steps[0] == of_steps[1]


def test_the_objective_is_the_one_named(text_file, tmp_path):
    assert set(OBJECTIVES) == set(CLASSES)
    for _, name, own, kind in CASES:
        config = settings(text_file, tmp_path, *overrides("absorbing", name, own))
        model, objective = new_network(config, 11)
        assert (type(model), type(objective)) == (kind, CLASSES[name])
        assert {key: getattr(objective, key) for key in own} == own
        assert (objective.graph, objective.noise) == (model.graph, model.noise)
    config = settings(text_file, tmp_path, "model.kind=posterior")
    model, objective = new_network(config, 11)
    assert (type(model), type(objective)) == (sf.PosteriorSEDD, sf.ScoreEntropyLoss)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            ["objective.type=mse"],
            r"objective\.type: expected one of None, score_entropy, .*, got 'mse'",
        ),
        (["objective.over=k"], r"objective\.over: expected one of t, lambda, got 'k'"),
        (["objective.steps=0"], r"objective\.steps: expected at least 1, got 0"),
        (
            ["objective.type=score_entropy", "objective.over=lambda"],
            r"objective\.over: only valid with objective\.type=masked_cross_entropy, got lambda",
        ),
        (
            ["objective.type=masked_cross_entropy", "objective.steps=9"],
            r"objective\.steps: only valid with objective\.type=d3pm, got 9 .* take .*, or leave",
        ),
        (
            ["objective.type=masked_cross_entropy", "graph.type=uniform"],
            r"masked_cross_entropy needs a mask, got graph\.type=uniform; take",
        ),
        (
            ["objective.type=d3pm", "model.kind=sedd"],
            r"model\.kind: d3pm does not learn the scale of scores, got sedd; take",
        ),
        (
            ["objective.type=d3pm", "model.kind=ar"],
            r"model\.kind=ar is trained to predict the next token, got d3pm; leave",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(chosen, message):
    with pytest.raises(ValueError, match=message):
        load_config("tiny", overrides=chosen)


@pytest.mark.parametrize(
    ("chosen", "name", "kind"),
    [
        ([], "masked_cross_entropy", "posterior"),
        (["model.kind=posterior"], "masked_cross_entropy", "posterior"),
        (["model.kind=sedd"], "score_entropy", "sedd"),
        (["graph.type=uniform"], "score_entropy", "sedd"),
        (["model.kind=ar"], "score_entropy", "ar"),
        (["graph.type=uniform", "objective.type=d3pm"], "d3pm", "posterior"),
    ],
)
def test_an_objective_that_fits_is_chosen(chosen, name, kind):
    config = load_config("tiny", overrides=chosen)
    assert (config.objective_type, config.network_kind) == (name, kind)
    assert config_from_dict(asdict(config)) == config
    settings = dict(text.split("=") for text in chosen)
    assert changed(load_config("tiny"), settings) == config


def test_a_run_keeps_its_objective(text_file, tmp_path):
    run = tmp_path / "run"
    train(settings(text_file, run, "training.n_iters=3"))
    for key, value, trained in (
        ("objective.type", "concrete_score", "score_entropy"),
        ("objective.type", "d3pm", "score_entropy"),
        ("model.kind", "posterior", "sedd"),
    ):
        with pytest.raises(ValueError, match=f"{key}: the run was trained with {trained}, got"):
            resume(run, [f"{key}={value}"])
    assert resume(run, ["model.kind=sedd", "training.n_iters=4"]).step == 4  # what None meant


def test_settings_saved_before_objectives_could_be_chosen():
    old = asdict(load_config("tiny"))
    del old["objective"]
    old["model"]["kind"] = "sedd"
    config = config_from_dict(old)
    assert (config.objective.type, config.network_kind) == ("score_entropy", "sedd")


def test_an_objective_that_is_not_in_nats_shows_no_bits(text_file, tmp_path, capsys):
    run, seen = tmp_path / "run", []
    chosen = ["objective.type=concrete_score", "training.n_iters=4"]
    train(settings(text_file, run, *chosen), on_step=seen.append)
    assert (seen[-1].bits_per_token, seen[-1].bits_per_char) == (None, None)
    assert seen[-1].held_out.bits_per_token is None
    records = read_metrics(run / "metrics.jsonl")
    assert all(record.get("bits_per_token") is None for record in records)
    assert main(["train", "--resume", str(run), "training.n_iters=6"]) == 0
    printed = capsys.readouterr()
    assert "loss/token, training objective" in " ".join(printed.out.split())
    assert "loss/token" in printed.err
    assert "bits" not in printed.out + printed.err
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
