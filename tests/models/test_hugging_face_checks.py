"""Masked language models of Hugging Face: wrong settings and files, hooks, threads."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.masked_models import MASK, STATES, Saved
from sedd_fast.models.hugging_face import MaskedLanguageModel

pytest.importorskip("transformers")

X = torch.full((2, 5), MASK)
SIGMA = torch.ones(2)


@pytest.fixture
def folder(saved_models: Saved, tmp_path: Path) -> Path:
    """A copy of BERT's files, to be changed."""
    return Path(shutil.copytree(saved_models("bert"), tmp_path / "bert"))


def bert(folder: Path, **options: Any) -> MaskedLanguageModel:
    return MaskedLanguageModel.from_pretrained(folder, **options)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


# Hooks between the network and its head


def hooked(network: Any) -> None:
    network.cls.register_forward_hook(lambda _, __, out: out * 2)


def replaced(network: Any) -> None:
    forward = network.cls.predictions.forward
    network.cls.predictions.forward = lambda x: forward(x) + torch.arange(STATES)


@pytest.mark.parametrize("changed", [hooked, replaced])
@torch.no_grad()
def test_modules_that_the_head_is_part_of_are_checked(changed: Callable[..., None], folder: Path):
    model = bert(folder)
    assert model.fused
    changed(model.network)
    assert not model.fused
    x_0 = torch.randint(4, 17, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = model.network(X).logits.index_fill(-1, torch.tensor(MASK), -torch.inf)
    nats = -expected.log_softmax(-1).gather(-1, x_0[..., None]).sum((1, 2))
    objective = sf.MaskedCrossEntropy(model.graph, model.noise)
    torch.testing.assert_close(objective(model, x_0, t=torch.ones(2), x_t=X), nats)


# Files of a tokenizer


def test_a_tokenizer_without_words_is_none(folder: Path):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="mask_index: neither config"):
        bert(folder)
    change(folder, mask_token_id=MASK)
    with pytest.raises(ValueError, match="tokenizer: none beside the weights"):
        sf.load(folder)
    assert bert(folder).graph.mask_index == MASK


# Settings


def test_a_default_of_the_settings_class_is_no_mask(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import BertConfig

    monkeypatch.setattr(BertConfig, "mask_token_id", 0, raising=False)  # as XLM and FlauBERT
    assert bert(folder).graph.mask_index == MASK


def test_two_different_masks_are_refused(folder: Path):
    change(folder, mask_token_id=7)
    with pytest.raises(ValueError, match=rf"mask_token_id 7, .* the mask {MASK}; .*mask_index=ID"):
        bert(folder)
    assert bert(folder, mask_index=7).graph.mask_index == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", []),
        ("mask_token_id", "abc"),
        ("mask_token_id", [3]),
        ("mask_token_id", 3.7),
        ("mask_token_id", True),
        ("mask_token_id", -1),
        ("max_sequence_length", True),
        ("vocab_size", "24"),
    ],
)
def test_values_of_the_wrong_type(key: str, value: Any, folder: Path):
    change(folder, **{key: value})
    with pytest.raises(ValueError, match=f"^{key}: expected .* in config.json"):
        sf.load(folder)


def test_trust_remote_code_is_a_bool(folder: Path):
    for function in (sf.load, MaskedLanguageModel.from_pretrained):
        for value in ("False", 1, None):
            with pytest.raises(TypeError, match="trust_remote_code must be a bool"):
                function(folder, trust_remote_code=value)


def test_an_adapter_needs_its_layer(folder: Path):
    with pytest.raises(ValueError, match=r"adapter: .* backbone\.output_layer\.linear"):
        bert(folder, adapter="mdlm")


def test_lengths_beyond_the_positions(folder: Path):
    model = sf.load(folder)
    assert model.model.config.most_tokens == 64
    with pytest.raises(ValueError, match=r"length: .* positions for 64 tokens, got 65"):
        model.sample(length=65)


# Modes and threads


def test_a_network_in_training_mode_is_tried_without_dropout(folder: Path):
    network = bert(folder).network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = torch.random.get_rng_state()
    assert MaskedLanguageModel(network, "masked_lm", MASK).fused
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.training


def test_calls_of_several_threads_wait_for_each_other(folder: Path):
    model = bert(folder)
    inside, errors = [], []
    head = model.network.get_output_embeddings()

    def watch(*_: Any) -> None:
        inside.append(1)
        errors.extend(inside[1:])
        threading.Event().wait(0.02)  # the other thread would run now
        inside.pop()

    model.network.bert.register_forward_hook(watch)
    objective = sf.MaskedCrossEntropy(model.graph, model.noise)

    def call() -> None:
        with torch.no_grad():
            objective(model, X.new_full((2, 5), 5), t=torch.ones(2), x_t=X)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert model.network.get_output_embeddings() is head


def test_texts_with_the_masks_name_are_refused(folder: Path):
    model = sf.load(folder)
    for call in (
        lambda: model.bits_per_token("the <mask> cat"),
        lambda: model.infill("the [2] <mask>", steps=1),
    ):
        with pytest.raises(ValueError, match="the text holds the mask's own name"):
            call()
