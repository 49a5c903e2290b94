"""Errors of runs that start from trained weights (`model.init`): one line, before training."""

import json
import re
import shutil
from pathlib import Path

import pytest

from helpers.initial_weights import initial, saved_network, stop_at, with_letters
from helpers.tiny_run import settings, write_letters
from sedd_fast.cli import main
from sedd_fast.data.tokenizers import ByteTokenizer, CharTokenizer, load_tokenizer
from sedd_fast.training.api import resume, train
from sedd_fast.training.config import load_config, load_run_config, save_config
from sedd_fast.training.initial_weights import read_initial
from sedd_fast.training.settings import TrainConfig


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_letters(tmp_path_factory.mktemp("text") / "letters.txt")


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    return train(settings(text_file, folder, "training.n_iters=1")).run_dir


@pytest.mark.parametrize(
    ("weights", "graph", "chosen", "message"),
    [
        ("sedd", "absorbing", "model.length=17", "model.length: 17 exceeds the 16 tokens that the "
         "weights of {} were trained with; take at most 16"),
        ("sedd", "absorbing", "graph.type=uniform",
         "graph.type: the weights of {} were trained with absorbing, got uniform; leave graph.type "
         "out"),
        ("sedd", "absorbing", "noise.type=geometric", "noise.type: the weights of {} were trained "
         "with loglinear, got geometric"),
        ("sedd", "absorbing", "noise.eps=0.01", "noise.eps: the weights of {} were trained with "
         "0.001, got 0.01"),
        ("sedd", "absorbing", "noise.sigma_max=10", "noise.sigma_max: the weights of {} were "
         "trained with 20.0, got 10.0"),
        ("sedd", "absorbing", "model.scale_by_sigma=false",
         "model.scale_by_sigma: the weights of {} were trained with True, got False"),
        ("sedd", "absorbing", "model.vocab_size=12", "model.vocab_size: the weights of {} were "
         "trained with 11, got 12"),
        ("sedd", "absorbing", "model.kind=ar", "model.kind: the weights of {} are those of a "
         "network of kind sedd (absorbing), got ar; leave model.kind out"),
        ("posterior", "absorbing", "model.kind=sedd", "model.kind: the weights of {} are those of "
         "a network of kind posterior (absorbing), got sedd; leave model.kind out"),
        ("ar", "absorbing", "model.kind=sedd", "model.kind: the weights of {} are those of a "
         "network of kind ar (absorbing), got sedd"),
        ("sedd", "uniform", "model.kind=posterior", "model.kind: the weights of {} are those of a "
         "network of kind sedd (uniform), got posterior"),
        ("sedd", "uniform", "objective.type=d3pm", "objective.type: the weights of {} are those of "
         "a network of kind sedd (uniform), got d3pm, which needs kind posterior; take "
         "objective.type=score_entropy"),
        ("ar", "absorbing", "objective.type=masked_cross_entropy", "objective.type: the weights of "
         "{} are those of a network of kind ar (absorbing), got masked_cross_entropy"),
        ("posterior", "uniform", "objective.type=masked_cross_entropy", "model.init: with the "
         "network of {}: objective.type: masked_cross_entropy needs a mask"),
        ("sedd", "absorbing", "data.tokenizer=bytes", "data.tokenizer: bytes has 257 tokens, the "
         "weights of {} only 11: they are weights of another vocabulary; name the tokenizer"),
        ("sedd", "absorbing", "data.tokenizer=bpe:300", "data.tokenizer: bpe:300 would be learned "
         "from the text, and there is no tokenizer beside the weights of {} (11 tokens); name"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_weights(weights, graph, chosen, message, text_file, tmp_path):
    path = saved_network(tmp_path, weights, graph)
    expected = re.escape(message.format(path))
    with pytest.raises(ValueError, match=rf"^{expected}[^\n]*$"):
        train(settings(text_file, tmp_path / "run", *with_letters(path), chosen))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_tokenizer_that_is_too_large_is_told_of_that_beside_the_weights(base, text_file):
    with pytest.raises(ValueError, match=rf"with: data\.tokenizer={base}/export$"):
        initial(text_file, f"model.init={base}", "data.tokenizer=bytes")


def test_a_run_started_before_keeps_its_tokenizer(base, text_file, tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        train(settings(text_file, tmp_path / "run", f"model.init={base}"), on_step=stop_at(1))
    own = CharTokenizer("hgfedcba")
    shutil.rmtree(tmp_path / "run/tokenizer")
    own.save(tmp_path / "run/tokenizer")
    assert load_tokenizer(resume(tmp_path / "run").export) == own
    config = load_run_config(tmp_path / "run/config.yaml")
    with pytest.raises(ValueError, match=r"the tokenizer of the run has 257 tokens, .* only 10:"):
        read_initial(config, ByteTokenizer())


def test_names_without_weights(text_file, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "begun").mkdir()
    save_config(TrainConfig(), tmp_path / "begun/config.yaml")
    cases = {
        "absent": "no directory '",
        "empty": f"{tmp_path / 'empty'} holds no config.json",
        "file": f"{tmp_path / 'file'} is a file",
        "begun": f"the run {tmp_path / 'begun'} holds no weights yet",
    }
    for name, message in cases.items():
        words = [f"data.train={text_file}", f"model.init={tmp_path / name}"]
        assert main(["train", *words, "--run-dir", str(tmp_path / "run")]) == 2
        *_, shown = capsys.readouterr().err.splitlines()
        assert shown.startswith(f"sedd-fast: model.init: {message}")
        assert not (tmp_path / "run/config.yaml").exists()
    with pytest.raises(ValueError, match=r"^model\.init: expected a run directory, .*, got ''"):
        load_config("tiny", overrides={"model.init": ""})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 512, "the weights of .* do not fit its settings"),
        (
            "n_blocks",
            2000,
            "the settings of .* ask for 2000 blocks, but its weights are those of 2",
        ),
        ("n_heads", 5, "hidden_size must be n_heads times an even head width"),
    ],
)
def test_settings_of_another_network_are_found_before_it_is_made(
    key, value, message, text_file, tmp_path
):
    weights = saved_network(tmp_path)
    wrong = json.loads((weights / "config.json").read_text())
    wrong["model"][key] = value
    (weights / "config.json").write_text(json.dumps(wrong))
    (weights / "model.sha256").unlink()
    with pytest.raises(ValueError, match=rf"^model\.init: [^\n]*{message}[^\n]*$"):
        initial(text_file, *with_letters(weights))


def test_damaged_weights(text_file, tmp_path):
    weights = saved_network(tmp_path)
    file = weights / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^model\.init: .*model\.safetensors"):
        initial(text_file, *with_letters(weights))
