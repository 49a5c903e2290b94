"""What Accelerate's environment sets, and what it must not change."""

from dataclasses import replace

import pytest
import torch

from helpers.tiny_run import losses, settings, write_text
from sedd_fast.data.batches import Batch
from sedd_fast.evaluate.standard_error import student_factor
from sedd_fast.training import api
from sedd_fast.training.api import make_accelerator, resume, train
from sedd_fast.training.config import load_config
from sedd_fast.training.loop import Trainer
from sedd_fast.training.step import Learner

TOKENS = 20


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture
def x_0():
    return torch.randint(TOKENS, (4, 16), generator=torch.Generator().manual_seed(0))


def updated(config, x_0):
    """The gradients of one step, and the weights after it."""
    learner = Learner(config, TOKENS, make_accelerator(config))
    learner.accumulate(Batch(x_0), 1)
    gradients = [p.grad.clone() for p in learner.plain.parameters()]
    learner.apply(1e-3)
    return gradients, [p.detach().clone() for p in learner.plain.parameters()]


@pytest.mark.parametrize("accum", [1, 2])
def test_the_setting_alone_rules_accumulation(accum, text_file, x_0, tmp_path, monkeypatch):
    config = settings(text_file, tmp_path / "run", f"training.accum={accum}")
    expected = updated(config, x_0)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for ours, theirs in zip(updated(config, x_0), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert any(bool((g != 0).any()) for g in expected[0])


def test_half_done_accumulation_of_the_caller_is_left_behind(text_file, x_0, tmp_path):
    from accelerate import Accelerator

    config = settings(text_file, tmp_path / "run")
    expected = updated(config, x_0)[1]
    theirs = Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = theirs.prepare(torch.nn.Linear(2, 2))
    with theirs.accumulate(model):
        assert not theirs.sync_gradients  # AcceleratedOptimizer.step would do nothing
    assert all(map(torch.equal, updated(config, x_0)[1], expected))


def test_one_held_out_block_of_each_process_has_an_error(text_file, tmp_path, monkeypatch):
    one = ["training.n_iters=1", "training.eval_sequences=1"]
    alone = train(settings(text_file, tmp_path / "alone", *one))
    assert alone.held_out.stderr is None
    assert resume(alone.run_dir).held_out == alone.held_out  # read back from its checkpoint

    def gather(self, *values):
        rows = [values]
        if len(values) == 5:  # of the estimate: the other process has one block too
            other = values[1] + 2
            rows.append((1, other, other**2, *values[3:]))
        return torch.tensor(rows, dtype=torch.float64)

    monkeypatch.setattr(Trainer, "_gather", gather)
    two = train(settings(text_file, tmp_path / "two", *one)).held_out
    assert two.nats_per_token == pytest.approx(alone.held_out.nats_per_token + 1)
    assert two.stderr == pytest.approx(float(student_factor(torch.tensor(1.0))))  # s^2 / 2 is 1


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_sharded_training_is_refused(name, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"ACCELERATE_USE_{name} is set.*--multi_gpu"):
        make_accelerator(settings(text_file, tmp_path))


def test_precision(text_file, tmp_path, monkeypatch):
    config = settings(text_file, tmp_path / "run", "training.n_iters=1")
    with pytest.raises(ValueError, match="fp16 needs a GPU; set it to no or bf16"):
        make_accelerator(settings(text_file, tmp_path, "training.mixed_precision=fp16"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(config).mixed_precision == "bf16"
    plain = replace(config, training=replace(config.training, mixed_precision="no"))
    assert make_accelerator(plain).mixed_precision == "no"
    # The launcher's choice is kept by a resumed run.
    train(config)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    saved = load_config(files=[tmp_path / "run/config.yaml"])
    assert saved.training.mixed_precision == make_accelerator(saved).mixed_precision == "bf16"


def test_compiling_does_not_change_the_precision_of_products(text_file, tmp_path, monkeypatch):
    def accelerator(**options):
        torch.set_float32_matmul_precision("high")  # Accelerate does it on CUDA
        return made(**options)

    import accelerate

    made = accelerate.Accelerator
    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    before = torch.get_float32_matmul_precision()
    api.make_accelerator(settings(text_file, tmp_path))
    assert torch.get_float32_matmul_precision() == before != "high"


def test_compiled_and_plain_runs_resume_each_other(text_file, tmp_path, monkeypatch):
    more = ["training.n_iters=2", "training.eval_freq=0", "training.snapshot_freq=1"]
    runs = {}
    for first, then in (("EAGER", "no"), ("no", "EAGER")):
        run = tmp_path / f"{first}-{then}"
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", first)
        train(settings(text_file, run, *more, "training.n_iters=1"))
        state = torch.load(run / "checkpoints/step-00000001/state.pt", weights_only=True)
        assert not any("_orig_mod" in name for name in state["model"])
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", then)
        resume(run, ["training.n_iters=2"])
        runs[run.name] = losses(run)
    ours, theirs = ([value for *_, value in entries] for entries in runs.values())
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("regional", ["true", "false"])
def test_a_compiled_network_is_compiled_and_has_plain_names(
    regional, text_file, x_0, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)
    config = settings(text_file, tmp_path / "run", "model.n_blocks=2")
    learner = Learner(config, TOKENS, make_accelerator(config))
    names = [name for name, _ in learner.model.named_parameters()]
    assert any("_orig_mod" in name for name in names)
    assert not any("_orig_mod" in name for name in learner.state_dict()["model"])
    assert len(learner.state_dict()["model"]) >= len(names)
    before = [p.detach().clone() for p in learner.plain.parameters()]
    learner.accumulate(Batch(x_0), 1)
    learner.apply(1e-3)
    assert not all(map(torch.equal, learner.plain.parameters(), before))
    learner.plain.save_pretrained(tmp_path / "export")
    assert (tmp_path / "export/model.safetensors").is_file()
