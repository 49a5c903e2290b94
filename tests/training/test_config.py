"""Settings: presets, files, overrides, and the messages for wrong ones."""

import json
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest

from sedd_fast.files.pickles import check_weights
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.ema import ExponentialMovingAverage
from sedd_fast.text import demo
from sedd_fast.training.config import (
    PRESETS,
    config_from_dict,
    load_config,
    save_config,
)
from sedd_fast.training.metrics import read_metrics
from sedd_fast.training.settings import TrainConfig, TrainingSection


def test_defaults_are_the_originals():
    c = TrainConfig()
    assert (c.optim.lr, c.optim.warmup, c.optim.grad_clip) == (3e-4, 2500, 1.0)
    assert (c.training.ema, c.training.batch_size, c.training.n_iters) == (0.9999, 512, 1_300_000)
    assert (c.noise.type, c.graph.type, c.model.cond_dim) == ("loglinear", "absorbing", 128)


@pytest.mark.parametrize(
    ("preset", "blocks", "width", "heads"), [("small", 12, 768, 12), ("medium", 24, 1024, 16)]
)
def test_presets_have_the_published_shapes(preset, blocks, width, heads):
    c = load_config(preset)
    assert (c.model.n_blocks, c.model.hidden_size, c.model.n_heads) == (blocks, width, heads)
    assert (c.model.length, c.data.tokenizer, c.training.ema) == (1024, "gpt2", 0.9999)
    assert isinstance(c.model_config(50257), SEDDConfig)


def test_tiny_is_a_small_model_of_subwords():
    c = load_config("tiny")
    assert (c.data.train, c.data.tokenizer) == ("pydoc", "bpe:2048")
    assert c.training.max_minutes == 5


def test_later_layers_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {lr: 1e-3, warmup: 7}\n")
    second.write_text("optim:\n  lr: 2e-3\ndata:\n  train: [a.txt, b.txt]\n")
    c = load_config("small", [first, second], ["optim.warmup=9", "training.max_minutes=2.5"])
    assert (c.optim.lr, c.optim.warmup, c.training.max_minutes) == (2e-3, 9, 2.5)
    assert c.data.train == ["a.txt", "b.txt"]
    assert c.model.hidden_size == 768


def test_null_and_lists_on_the_command_line():
    c = load_config("tiny", overrides=["training.max_minutes=null", "data.train=[a.txt,b.txt]"])
    assert c.training.max_minutes is None
    assert c.data.train == ["a.txt", "b.txt"]


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_settings_read_back(preset, tmp_path):
    config = load_config(preset, overrides=["run_dir=runs/x", "data.valid=v.txt"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(files=[tmp_path / "config.yaml"]) == config
    assert config_from_dict(asdict(config)) == config
    again = load_config(None, [tmp_path / "config.yaml"], ["optim.lr=1"])
    assert again == replace(config, optim=replace(config.optim, lr=1.0))


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().optim.lr = 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr=1", r"unknown setting 'optim\.lrr'; did you mean optim\.lr"),
        ("lr=1", r"unknown setting 'lr'; did you mean optim\.lr\?"),
        ("training.n_iter=1", r"did you mean training\.n_iters\?"),
        ("nothing.like=1", r"unknown setting 'nothing'; the top level has run_dir, model"),
        ("data.zzz=1", r"unknown setting 'data\.zzz'; data has train, valid"),
        ("optim=3", r"optim: expected settings under it"),
        ("optim.lr=fast", r"optim\.lr: .*'fast'"),
        ("training.batch_size=2.5", r"training\.batch_size: .*2\.5"),
        ("training.batch_size=0", r"training\.batch_size: expected at least 1, got 0"),
        ("optim.lr=-1", r"optim\.lr: expected at least 0"),
        ("training.ema=1.5", r"training\.ema: expected a number from 0 to 1, got 1\.5"),
        ("optim.lr=nan", r"optim\.lr: expected at least 0, got nan"),
        ("optim.beta1=2", r"optim\.beta1: expected a number from 0 to 1, got 2\.0"),
        ("data.train=null", r"data\.train: expected a name, a path"),
        ("data.train=[]", r"data\.train: expected a name, a path"),
        ("graph.type=blue", r"graph\.type: expected one of absorbing, absorb, uniform"),
        ("training.mixed_precision=int8", r"training\.mixed_precision: expected one of"),
        ("optim.lr", r"expected section\.key=value, got 'optim\.lr'"),
        ("data.train=[a", r"override: cannot read 'data\.train=\[a'"),
    ],
)
def test_wrong_overrides_get_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config("tiny", overrides=[text])
    assert "\n" not in str(caught.value)


def test_wrong_files_get_one_line(tmp_path):
    broken, empty = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("optim: [1,\n")
    empty.write_text("- 1\n")
    for path in (broken, empty, tmp_path / "missing.yaml"):
        with pytest.raises(ValueError, match=f"config: .*{path.name}") as caught:
            load_config(files=[path])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="preset: expected one of tiny, small, medium"):
        load_config("huge")


def test_uniform_graph_does_not_scale_by_sigma():
    c = load_config("tiny", overrides=["graph.type=uniform", "noise.type=geometric"])
    model = c.model_config(10)
    assert (model.graph, model.noise, model.scale_by_sigma) == ("uniform", "geometric", False)
    assert load_config("tiny", overrides=["graph.type=absorb"]).model_config(10).scale_by_sigma


@pytest.mark.parametrize(
    ("minutes", "step", "seconds", "over"),
    [(None, 9, 1e9, False), (None, 10, 0, True), (2, 9, 119, False), (2, 9, 120, True)],
)
def test_when_a_run_is_over(minutes, step, seconds, over):
    assert TrainingSection(n_iters=10, max_minutes=minutes).is_over(step, seconds) is over


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "line",
    [
        DEEP, '{"step": 1, "loss": ' + DEEP, "[1]", '{"step": "1"}', '{"step": true}',
        '{"step": -1}',
        '{"step": 1, "loss": "low"}', '{"step": 1, "loss": [1]}', '{"step": 1, "loss": NaN}',
        '{"step": ' + "1" * 5000 + "}", '{"step": 1, "loss": 1' + "0" * 400 + "}", '{"loss": 1.5}',
    ],
)  # fmt: skip
def test_lines_that_are_no_record_are_left_out(line, tmp_path):
    whole = {"step": 3, "loss": 2.5, "bits_per_char": None}
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{json.dumps(whole)}\n{line}\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [whole]


@pytest.mark.parametrize("text", [DEEP, "[1]", "{}", '{"finished": 1}', "1" * 5000, "\udcff", ""])
def test_a_record_of_a_demo_that_is_none_is_no_demo(text, tmp_path):
    (tmp_path / "demo.json").write_bytes(text.encode(errors="surrogateescape"))
    assert not demo.is_interrupted(tmp_path)
    assert not demo.is_trained(tmp_path)


def test_names_of_any_depth_are_shown():
    name = ()
    for _ in range(100_000):
        name = (name,)
    for layer in ({name: 1}, {"optim": {name: 1}}, {"optim": {"lr": name}}):
        with pytest.raises(ValueError, match=r"unknown setting|optim\.lr"):
            config_from_dict(layer)
    with pytest.raises(ValueError, match="must hold tensors by name"):
        check_weights([(name, 1)], Path("weights.bin"))
    ema = ExponentialMovingAverage([], 0.5)
    for state in ({"decay": name}, {"num_updates": name}):
        with pytest.raises(ValueError, match="the saved EMA"):
            ema.load_state_dict({**ema.state_dict(), **state})
