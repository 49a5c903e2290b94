"""Runs that start from trained weights (`model.init`)."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import sedd_fast as sf
from helpers.initial_weights import LETTERS, initial, saved_network, stop_at, with_letters
from helpers.tiny_models import batch, tiny
from helpers.tiny_run import losses, settings, write_letters, write_text
from sedd_fast.cli import main
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer, load_tokenizer
from sedd_fast.models import networks
from sedd_fast.models.checkpoint import read
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.networks import BUNDLED, KINDS
from sedd_fast.training import initial_weights
from sedd_fast.training.api import make_accelerator, resume, train
from sedd_fast.training.config import (
    baseline_config,
    changed,
    load_config,
    load_run_config,
)
from sedd_fast.training.initial_weights import read_initial
from sedd_fast.training.loop import Trainer
from sedd_fast.training.run_directory import RunDirectory

GOLDEN = Path(__file__).parent.parent / "golden"
STILL = ["training.n_iters=1", "optim.lr=0"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("text") / "letters.txt")


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of another size than that of `settings`."""
    more = ["model.hidden_size=24", "model.n_blocks=2", "model.mlp_ratio=3", "training.n_iters=2"]
    return train(settings(text_file, tmp_path_factory.mktemp("runs") / "base", *more)).run_dir


def state(run: Path) -> dict[str, dict[str, Tensor]]:
    newest = RunDirectory(run).latest()
    assert newest is not None
    return torch.load(newest / "state.pt", weights_only=True)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# Where the weights come from


@pytest.mark.parametrize(
    "source",
    ["run", "export", "sedd", "posterior", "ar", "local-run", "absorb-hf", "uniform-hf", "bundled"],
)
def test_it_starts_with_exactly_these_weights(source, base, text_file, tmp_path):
    sources = {"run": base, "export": base / "export", "bundled": BUNDLED}
    if source in KINDS:
        path = saved_network(tmp_path, source)
        chosen = with_letters(path)
    else:
        path = sources.get(source, GOLDEN / source)
        chosen = [f"model.init={'bundled' if source == 'bundled' else path}"]
        if path.is_relative_to(GOLDEN):
            LETTERS.save(tmp_path / "letters")
            chosen.append(f"data.tokenizer={tmp_path / 'letters'}")
    more = [] if source in ("run", "export", "sedd") else ["objective.type=null"]
    run = train(settings(text_file, tmp_path / "run", *STILL, *chosen, *more)).run_dir
    before = networks.load(path)
    if source == "local-run":
        original = torch.load(path / "checkpoints-meta/checkpoint.pth", weights_only=True)
        averages = original["ema"]["shadow_params"]
        assert all(map(torch.equal, state(run)["ema"]["shadow_params"], averages))
    assert_equal(state(run)["model"], before.state_dict())
    for averaged, p in zip(state(run)["ema"]["shadow_params"], before.parameters(), strict=True):
        assert torch.equal(averaged, p)
    after = networks.load(run)
    assert_equal(after.state_dict(), before.state_dict())
    assert type(after) is type(before)
    # Length and dropout are those of the run's settings, all else is that of the weights.
    assert after.config == replace(before.config, length=16, dropout=0.1)


def test_it_trains_from_there(base, text_file, tmp_path):
    run = train(settings(text_file, tmp_path / "run", f"model.init={base}", "optim.lr=1e-3"))
    before, after = (load_file(path / "export/model.safetensors") for path in (base, run.run_dir))
    moved = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(moved) < 0.05


def test_the_settings_of_the_network_are_written_to_the_run(text_file, tmp_path):
    weights = saved_network(tmp_path, "sedd", "uniform", hidden_size=24, mlp_ratio=2)
    changed_settings = json.loads((weights / "config.json").read_text())
    changed_settings["noise"] = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 10}
    (weights / "config.json").write_text(json.dumps(changed_settings))
    (weights / "model.sha256").unlink()
    run = train(settings(text_file, tmp_path / "run", *STILL, *with_letters(weights))).run_dir
    config = load_run_config(run / "config.yaml")
    model = config.model
    assert (model.hidden_size, model.n_blocks, model.mlp_ratio, model.vocab_size) == (24, 2, 2, 11)
    assert (model.kind, model.scale_by_sigma, model.init) == ("sedd", False, str(weights))
    assert (model.length, model.dropout, config.graph.type) == (16, 0.1, "uniform")
    noise = config.noise
    assert (noise.type, noise.sigma_min, noise.sigma_max) == ("geometric", 1e-3, 10.0)


def test_functions_and_commands_take_it(base, text_file, tmp_path, capsys):
    chosen = {"model.init": str(base), "model.length": 16, "training.n_iters": 1, "optim.lr": 0,
              "optim.muon_lr": 0, "training.cpu": True, "log.tensorboard": False}  # fmt: skip
    result = sf.train(text_file, run_dir=tmp_path / "a", overrides=chosen, progress=False)
    words = [f"{name}={str(value).lower()}" for name, value in chosen.items()]
    assert main(["train", f"data.train={text_file}", *words, "--run-dir", str(tmp_path / "b")]) == 0
    before = networks.load(base).state_dict()
    for run in (result.run_dir, tmp_path / "b"):
        assert_equal(networks.load(run).state_dict(), before)


def test_weights_are_read_once_by_the_main_process_first_and_not_kept(
    base, text_file, tmp_path, monkeypatch
):
    config = settings(text_file, tmp_path / "run", f"model.init={base}")
    accelerator = make_accelerator(config)
    inside, found = [], []
    first = accelerator.main_process_first

    @contextmanager
    def recorded() -> Iterator[None]:
        with first():
            inside.append(True)
            yield
            inside.pop()

    def read_recorded(*args, **options):
        assert inside
        saved = read(*args, **options)
        found.append(weakref.ref(saved))
        return saved

    monkeypatch.setattr(accelerator, "main_process_first", recorded)
    monkeypatch.setattr(initial_weights.checkpoint, "read", read_recorded)
    trainer = Trainer(config, accelerator)
    gc.collect()
    [saved] = found
    assert saved() is None
    monkeypatch.undo()
    assert_equal(trainer.learner.plain.state_dict(), networks.load(base).state_dict())


def test_sizes_of_a_preset_give_way(base):
    small = changed(load_config("small"), {"model.init": str(base), "model.length": 16})
    found = read_initial(replace(small, data=replace(small.data, tokenizer="characters"))).config
    expected: SEDDConfig = networks.load(base).config
    assert found.model_config(10) == replace(expected, length=16)


# The kind of network and the objective


@pytest.mark.parametrize(
    ("weights", "graph", "chosen", "kind", "objective"),
    [
        ("sedd", "absorbing", ["objective.type=null"], "sedd", "score_entropy"),
        ("sedd", "absorbing", ["objective.type=score_entropy"], "sedd", "score_entropy"),
        ("sedd", "absorbing", ["objective.type=d3pm"], "posterior", "d3pm"),
        (
            "sedd", "absorbing", ["objective.type=masked_cross_entropy"],
            "posterior", "masked_cross_entropy",
        ),
        (
            "sedd", "absorbing", ["objective.type=null", "model.kind=posterior"],
            "posterior", "masked_cross_entropy",
        ),
        ("sedd", "uniform", ["objective.type=null"], "sedd", "score_entropy"),
        ("sedd", "uniform", ["objective.type=concrete_score"], "sedd", "concrete_score"),
        ("posterior", "absorbing", ["objective.type=null"], "posterior", "masked_cross_entropy"),
        ("posterior", "absorbing", ["objective.type=score_entropy"], "posterior", "score_entropy"),
        ("posterior", "uniform", ["objective.type=null"], "posterior", "score_entropy"),
        ("posterior", "uniform", ["objective.type=d3pm"], "posterior", "d3pm"),
        ("ar", "absorbing", ["objective.type=null"], "ar", "score_entropy"),
        ("ar", "absorbing", ["model.kind=ar"], "ar", "score_entropy"),
    ],
)  # fmt: skip
def test_kind_and_objective(weights, graph, chosen, kind, objective, text_file, tmp_path):
    path = saved_network(tmp_path, weights, graph)
    config = initial(text_file, *with_letters(path), *chosen).config
    assert (config.model.kind, config.network_kind, config.objective_type) == (
        kind,
        kind,
        objective,
    )


@pytest.mark.parametrize("scaled", [True, False])
def test_a_sedd_network_becomes_a_posterior_network_of_the_same_posterior(
    scaled, text_file, tmp_path
):
    sedd = tiny(scaled=scaled, length=16).eval()
    sedd.save_pretrained(tmp_path / "weights")
    LETTERS.save(tmp_path / "letters")
    chosen = [*with_letters(tmp_path / "weights"), "objective.type=masked_cross_entropy"]
    run = train(settings(text_file, tmp_path / "run", *STILL, *chosen)).run_dir
    posterior = networks.load(run).double()
    assert type(posterior) is sf.PosteriorSEDD
    x_t, sigma, _, _ = batch(sedd)
    masked = x_t == sedd.graph.mask_index
    with torch.no_grad():
        scores = [m(x_t, sigma)[masked][:, :11].exp() for m in (sedd.double(), posterior)]
    ours, converted = (s / s.sum(-1, keepdim=True) for s in scores)
    assert len(ours) > 10
    assert float(ours.max() / ours.min()) > 3  # two uniform posteriors would agree
    torch.testing.assert_close(converted, ours, atol=1e-6, rtol=0)


# The tokenizer


def test_the_tokenizer_beside_the_weights_replaces_one_that_is_learned(base, tmp_path):
    other = write_text(tmp_path / "words.txt")  # it has other characters
    for name in ("characters", "bpe:300"):
        found = initial(other, f"model.init={base}", f"data.tokenizer={name}").tokenizer
        assert found.fingerprint == load_tokenizer(base / "export").fingerprint


def test_a_named_tokenizer_with_the_same_tokens_is_used(text_file, tmp_path):
    """Beside weights with more tokens than their tokenizer; nothing else has its tokens."""
    weights = saved_network(tmp_path, vocab_size=300)
    ByteTokenizer().save(weights)
    assert initial(text_file, f"model.init={weights}").tokenizer == ByteTokenizer()
    chosen = [f"model.init={weights}", "data.tokenizer=bytes"]
    run = train(settings(text_file, tmp_path / "run", *STILL, *chosen)).run_dir
    assert load_tokenizer(run / "export") == ByteTokenizer()
    other = CharTokenizer("".join(map(chr, range(0x100, 0x100 + 255))))  # as many tokens
    for found in (LETTERS, other):
        found.save(tmp_path / "other")
        with pytest.raises(ValueError, match=r"other has \d+ tokens, .* another vocabulary"):
            initial(text_file, f"model.init={weights}", f"data.tokenizer={tmp_path / 'other'}")


def test_weights_of_50257_tokens_have_the_tokenizer_of_gpt2(text_file, tmp_path, monkeypatch):
    weights = saved_network(tmp_path, vocab_size=50_257)
    monkeypatch.setattr(initial_weights, "load_tokenizer", {"gpt2": LETTERS}.__getitem__)
    assert initial(text_file, f"model.init={weights}").tokenizer is LETTERS


# Resuming


@pytest.fixture(scope="module")
def whole(base, text_file, tmp_path_factory):
    """A run from `base` that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(settings(text_file, folder, f"model.init={base}", "training.n_iters=6")).run_dir


@pytest.mark.parametrize("stopped", [2, 5])  # the first checkpoint is that of step 3
def test_a_resumed_run_equals_one_that_was_not_stopped(stopped, whole, base, text_file, tmp_path):
    init = shutil.copytree(base, tmp_path / "init")
    config = settings(text_file, tmp_path / "run", f"model.init={init}", "training.n_iters=6")
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, on_step=stop_at(stopped))
    if stopped > 3:
        shutil.rmtree(init)  # the checkpoint is enough
    assert resume(tmp_path / "run").step == 6
    assert losses(tmp_path / "run") == losses(whole)
    exports = [load_file(run / "export/model.safetensors") for run in (tmp_path / "run", whole)]
    assert_equal(*exports)


def test_a_run_without_a_checkpoint_needs_the_weights_again(base, text_file, tmp_path):
    init = shutil.copytree(base, tmp_path / "init")
    with pytest.raises(RuntimeError, match="stopped"):
        train(settings(text_file, tmp_path / "run", f"model.init={init}"), on_step=stop_at(1))
    shutil.rmtree(init)
    with pytest.raises(FileNotFoundError, match=r"^model\.init: no directory '[^\n]*$"):
        resume(tmp_path / "run")


def test_a_resumed_run_keeps_its_initial_weights(whole, base):
    with pytest.raises(ValueError, match=r"^model\.init: the run was trained with .*, got bundled"):
        resume(whole, {"model.init": "bundled"})
    with pytest.raises(
        ValueError, match=r"^model\.vocab_size: the run was trained with 10, got 12"
    ):
        resume(whole, {"model.vocab_size": 12})


def test_a_run_of_a_version_without_these_settings_is_resumed(text_file, tmp_path):
    run = RunDirectory(train(settings(text_file, tmp_path / "run", "training.n_iters=3")).run_dir)
    older = yaml.safe_load(run.config.read_text())
    saved = state(run.path)
    for each in (older, saved["config"]):
        for name in ("init", "vocab_size"):
            del each["model"][name]
    run.config.write_text(yaml.safe_dump(older))
    torch.save(saved, run.latest() / "state.pt")
    assert resume(run.path, {"training.n_iters": 5}).step == 5


def test_the_baseline_of_a_run_has_its_size_and_tokenizer(base, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abca" * 500)  # fewer characters than in the text of `base`
    tuned = train(settings(text, tmp_path / "run", *STILL, f"model.init={base}")).run_dir
    config = baseline_config(load_run_config(tuned / "config.yaml"), tmp_path / "ar")
    run = train(config).run_dir
    assert load_tokenizer(run / "export") == load_tokenizer(base / "export")
    assert networks.load(run).config == networks.load(tuned).config
    assert load_run_config(run / "config.yaml").model.init is None


# The number of tokens


def test_a_network_of_more_tokens_than_the_tokenizer(text_file, tmp_path):
    run = train(settings(text_file, tmp_path / "run", "model.vocab_size=16", *STILL)).run_dir
    assert networks.load(run).config.vocab_size == 16
    assert load_tokenizer(run / "export").vocab_size == 10
    assert resume(run, {"training.n_iters": 2}).step == 2


def test_a_network_of_fewer_tokens_than_the_tokenizer(text_file, tmp_path):
    with pytest.raises(ValueError, match=r"^model\.vocab_size: expected at least the 10 tokens of"):
        train(settings(text_file, tmp_path / "run", "model.vocab_size=9"))
