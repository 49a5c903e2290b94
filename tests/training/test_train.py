"""Training: resuming, interruption, non-finite losses, held-out estimate, run directory."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_run import losses, settings, write_letters, write_text
from sedd_fast.data.tokenizers import CharTokenizer, load_tokenizer
from sedd_fast.losses.score_entropy import ScoreEntropyLoss
from sedd_fast.models.sedd import SEDD
from sedd_fast.training.api import is_finished, make_accelerator, resume, train
from sedd_fast.training.config import load_config, save_config
from sedd_fast.training.loop import Trainer
from sedd_fast.training.metrics import MetricsLog, rewind
from sedd_fast.training.progress import NonFiniteLossError, TrainingInterrupted, resume_command
from sedd_fast.training.run_directory import RunDirectory, random_state, set_random_state
from sedd_fast.training.settings import OptimConfig
from sedd_fast.training.step import rate_factor


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory):
    """A run that was never stopped."""
    return train(settings(text_file, tmp_path_factory.mktemp("runs") / "whole"))


def test_finished_run_exports_a_model_with_its_tokenizer(whole):
    model, tokenizer = SEDD.from_pretrained(whole.export), load_tokenizer(whole.export)
    assert isinstance(tokenizer, CharTokenizer)
    assert model.config.vocab_size == tokenizer.vocab_size
    saved = torch.load(whole.checkpoint / "state.pt", weights_only=True)
    for ours, averaged in zip(model.parameters(), saved["ema"]["shadow_params"], strict=True):
        assert torch.equal(ours, averaged)
    assert whole.step == saved["step"] == 12
    assert whole.held_out.step == 12


def test_metrics_have_every_step_once(whole):
    steps = [step for step, name, _ in losses(whole.run_dir) if name == "loss"]
    assert steps == list(range(1, 13))
    held_out = [step for step, name, _ in losses(whole.run_dir) if name == "held_out_loss"]
    assert held_out == [4, 8, 12]


def test_only_the_last_checkpoints_are_kept(whole):
    assert RunDirectory(whole.run_dir).steps() == [6, 9, 12]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_resumes_as_if_never_stopped(number, whole, text_file, tmp_path):
    before = signal.getsignal(number)

    def stop(info):
        if info.step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingInterrupted, match="sedd-fast train --resume") as caught:
        train(settings(text_file, tmp_path / "run"), on_step=stop)
    assert (caught.value.step, caught.value.exit_code) == (6, 130)
    assert RunDirectory(tmp_path / "run").steps()[-1] == 6
    assert not is_finished(tmp_path / "run")
    assert signal.getsignal(number) is before
    resume(tmp_path / "run")
    assert is_finished(tmp_path / "run")
    assert signal.getsignal(number) is before
    assert losses(tmp_path / "run") == losses(whole.run_dir)


def test_half_written_checkpoint_is_ignored_and_removed(whole, text_file, tmp_path, monkeypatch):
    def power_cut(self, step, keep_last):
        raise OSError("power cut")

    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "commit", power_cut)
        with pytest.raises(OSError, match="power cut"):
            train(settings(text_file, run.path))
    assert list(run.checkpoints.iterdir()) == [run.checkpoint(3, staging=True)]
    assert run.latest() is None
    resume(run.path)
    assert losses(run.path) == losses(whole.run_dir)
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == [
        "step-00000006", "step-00000009", "step-00000012",
    ]  # fmt: skip


def test_resuming_a_finished_run_changes_nothing_and_more_steps_continue(text_file, tmp_path):
    run_dir = tmp_path / "run"
    train(settings(text_file, run_dir, "training.n_iters=4"))
    before = losses(run_dir)
    assert (is_finished(run_dir), is_finished(tmp_path / "none")) == (True, False)
    assert resume(run_dir).step == 4
    assert losses(run_dir) == before
    assert resume(run_dir, ["training.n_iters=6"]).step == 6
    assert losses(run_dir)[: len(before)] == before


def test_damaged_checkpoint_is_named(text_file, tmp_path):
    result = train(settings(text_file, tmp_path / "run", "training.n_iters=3"))
    (result.checkpoint / "state.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    for reads in (resume, is_finished):
        with pytest.raises(ValueError, match=r"remove .*step-00000003"):
            reads(tmp_path / "run")


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_non_finite_stops_with_batch_saved_and_weights_untouched(
    part, text_file, tmp_path, monkeypatch
):
    config = settings(text_file, tmp_path / "run", "training.accum=2")
    trainer = Trainer(config, make_accelerator(config))
    honest, batches, weights = ScoreEntropyLoss.__call__, [], {}

    def objective(self, model, x_0, **options):
        batches.append(x_0)
        if len(batches) == 5:  # two parts a step: this is the first part of step 3
            weights.update({k: v.clone() for k, v in trainer.learner.plain.state_dict().items()})
        loss = honest(self, model, x_0, **options)
        return loss * float("inf") if part == "loss" and len(batches) >= 5 else loss

    def spoil(grad):
        return grad * float("nan") if part == "gradient" and len(batches) >= 5 else grad

    monkeypatch.setattr(ScoreEntropyLoss, "__call__", objective)
    trainer.learner.plain.vocab_embed.embedding.register_hook(spoil)
    with pytest.raises(NonFiniteLossError, match=f"{part} of step 3 .*saved in") as caught:
        trainer.fit()
    saved = torch.load(caught.value.path, weights_only=True)
    assert saved["step"] == caught.value.step == 3
    assert torch.equal(saved["x_0"], torch.cat(batches[4:6]))
    assert len(saved["t"]) == 4
    assert set(caught.value.t) <= set(saved["t"].tolist())
    for name, value in trainer.learner.plain.state_dict().items():
        assert torch.equal(value, weights[name])
    assert trainer.step == 2


def test_run_directory_is_not_overwritten(whole, text_file):
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        train(settings(text_file, whole.run_dir))


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_blocks=2", r"model.n_blocks: the run was trained with 1, got 2"),
        ("graph.type=uniform", r"graph.type: the run was trained with"),
        ("data.held_out=0.2", r"text differs"),
    ],
)
def test_resume_refuses_what_does_not_fit(override, message, whole):
    with pytest.raises(ValueError, match=message):
        resume(whole.run_dir, [override])


def test_batch_must_divide(text_file, tmp_path):
    with pytest.raises(ValueError, match=r"4 is not divisible by .*accum=3; .* 6"):
        train(settings(text_file, tmp_path / "run", "training.accum=3"))


def test_time_limit_ends_training(text_file, tmp_path):
    result = train(settings(text_file, tmp_path / "run", "training.max_minutes=1e-6"))
    assert result.step == 1
    assert result.export.is_dir()


def test_without_held_out_text_there_is_no_estimate(text_file, tmp_path):
    result = train(settings(text_file, tmp_path / "run", "data.held_out=0", "training.n_iters=4"))
    assert result.held_out is None


@pytest.mark.parametrize("more", ["training.mixed_precision=bf16", "graph.type=uniform"])
def test_variants_train(more, tmp_path):
    text_file, seen = write_letters(tmp_path / "letters.txt"), []
    options = [
        more,
        "training.n_iters=120",
        "training.batch_size=16",
        "training.eval_freq=0",
        "training.snapshot_freq=0",
    ]
    config = settings(text_file, tmp_path / "run", *options, "optim.lr=1e-2")
    result = train(config, on_step=seen.append)
    assert sum(i.loss for i in seen[-8:]) < 0.8 * sum(i.loss for i in seen[:8])
    assert SEDD.from_pretrained(result.export).config.graph in ("absorbing", "uniform")


def test_step_info_is_consistent(text_file, tmp_path):
    seen = []
    train(settings(text_file, tmp_path / "run", "training.n_iters=5"), on_step=seen.append)
    assert [info.step for info in seen] == [1, 2, 3, 4, 5]
    last = seen[-1]
    assert last.bits_per_token == pytest.approx(last.loss * 1.442695)
    assert last.bits_per_char == pytest.approx(last.bits_per_token, rel=0.01)
    assert seen[0].eta_seconds > 0 == last.eta_seconds
    assert [info.expected_steps for info in seen] == [5] * 5
    assert last.held_out.step == 4
    assert seen[0].lr < seen[1].lr  # warm-up


def test_warm_up_and_cosine():
    constant = OptimConfig(lr=2.0, warmup=4)
    assert [rate_factor(constant, s, 0.9) for s in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    cosine = OptimConfig(lr=2.0, warmup=0, schedule="cosine", lr_min=0.1)
    assert [rate_factor(cosine, 1, p) for p in (0, 0.5, 2)] == pytest.approx([1.0, 0.55, 0.1])


def test_resume_command_quotes_and_launches(monkeypatch):
    assert resume_command(Path("my runs/a")) == "sedd-fast train --resume 'my runs/a'"
    launched = "torchrun --nproc_per_node 2 -m sedd_fast train --resume r"
    assert resume_command(Path("r"), 2) == launched
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = "accelerate launch --num_processes 2 -m sedd_fast train --resume r"
    assert resume_command(Path("r"), 2) == launched


def test_random_states_round_trip(tmp_path):
    state = random_state()
    torch.save(state, tmp_path / "rng.pt")
    first = torch.rand(3), random.random()
    set_random_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    again = torch.rand(3), random.random()
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]


def test_rewind_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss": 0.1 * s}) for s in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo')
    rewind(path, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_metrics_are_read_while_they_are_written(tmp_path):
    """`tail -f` shows each line at once, and keeps its file where the run is resumed."""
    run, config = RunDirectory(tmp_path), load_config(overrides=["log.tensorboard=false"])
    for step in (1, 2):
        with MetricsLog(run, config, step - 1) as log:
            log.write({"step": step, "loss": 0.5})
            if step == 1:
                reader = run.metrics.open()
            assert [json.loads(line) for line in reader] == [{"step": step, "loss": 0.5}]
    reader.close()


def test_checkpoint_holds_the_settings(whole):
    saved = torch.load(whole.checkpoint / "state.pt", weights_only=True)
    assert saved["config"] == asdict(load_config(files=[whole.run_dir / "config.yaml"]))


def test_tensorboard_files(text_file, tmp_path):
    options = ["log.tensorboard=true", "training.n_iters=2"]
    result = train(settings(text_file, tmp_path / "run", *options))
    assert list((result.run_dir / "tensorboard").glob("events*"))


def test_wandb_missing_is_explained(text_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"needs wandb: pip install 'sedd-fast\[wandb\]'"):
        train(settings(text_file, tmp_path / "run", "log.wandb=true"))


def test_wandb_gets_the_figures(text_file, tmp_path, monkeypatch):
    given, logged, finished = {}, [], []

    def init(**options):
        given.update(options)
        return SimpleNamespace(
            log=lambda values, step: logged.append((step, values)),
            finish=lambda: finished.append(True),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    train(settings(text_file, tmp_path / "run", "log.wandb=true", "training.n_iters=4"))
    assert (given["project"], given["name"], given["resume"]) == ("sedd-fast", "run", "allow")
    assert given["config"]["training"]["n_iters"] == 4
    assert [step for step, _ in logged] == [1, 2, 3, 4, 4]
    assert "train/loss" in logged[0][1]
    assert "held_out/loss" in logged[-1][1]
    assert finished == [True]


PLAIN = """
import sys
from sedd_fast.training.api import train
from sedd_fast.training.config import load_config

train(load_config(files=sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        [],
        ["objective.type=masked_cross_entropy", "training.accum=2"],
        ["objective.type=d3pm", "graph.type=uniform"],
        ["objective.type=concrete_score"],
        ["model.kind=ar"],
    ],
    ids=lambda chosen: " ".join(chosen) or "usual",
)
def test_two_processes(chosen, text_file, tmp_path):
    save_config(settings(text_file, tmp_path / "run", *chosen), tmp_path / "settings.yaml")
    (tmp_path / "child.py").write_text(PLAIN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(tmp_path / "child.py"), str(tmp_path / "settings.yaml")],
        check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert len([e for e in losses(tmp_path / "run") if e[1] == "loss"]) == 12
    names = sorted(p.name for p in (tmp_path / "run/checkpoints/step-00000012").iterdir())
    assert names == ["rng-0.pt", "rng-1.pt", "state.pt"]


def test_plot(whole, tmp_path):
    pytest.importorskip("matplotlib")
    from sedd_fast.training.plots import plot_training

    picture = plot_training(whole.run_dir / "metrics.jsonl", tmp_path / "a.png", {"unigram": 3.0})
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="no file"):
        plot_training(tmp_path / "none.jsonl", tmp_path / "b.png")
