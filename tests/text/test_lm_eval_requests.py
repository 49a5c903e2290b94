"""The model "sedd_fast" of lm-evaluation-harness: unusual requests and wrong arguments."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.masked_models import MASK, Saved
from helpers.tiny_models import tiny
from sedd_fast.data.hub_tokenizers import TransformersTokenizer
from sedd_fast.data.tokenizers import CharTokenizer

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from lm_eval.api.instance import Instance

from sedd_fast.text.lm_eval import HarnessModel


@pytest.fixture(scope="module")
def uniform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uniform")
    tiny("uniform").eval().save_pretrained(folder)
    CharTokenizer("abcdefgh ").save(folder)
    return folder


def harness(pretrained: Path, **options: Any) -> HarnessModel:
    return HarnessModel(str(pretrained), device="cpu", **options)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]  # type: ignore[arg-type]


# Texts


def test_a_continuation_that_merges_with_the_context_has_tokens(
    saved_models: Saved, monkeypatch: pytest.MonkeyPatch
):
    model = harness(saved_models("bert"), mc_num=4)
    ids = {"the": [4], "cat": [5], "thecat": [6], " ": [], "": []}
    monkeypatch.setattr(model, "tok_encode", lambda text, **_: ids[text])
    [(found, _)] = model.loglikelihood(asked("loglikelihood", ("the", "cat")), True)
    assert found == pytest.approx(-model.scorer.bound([4], [5]).total_nats)
    assert found < 0
    [(found, _)] = model.loglikelihood(asked("loglikelihood", ("the", "")), True)
    assert found == 0
    with pytest.raises(ValueError, match="the continuation ' ' has no token"):
        model.loglikelihood(asked("loglikelihood", ("", " ")), True)


def word_pieces() -> TransformersTokenizer:
    from transformers import BertTokenizerFast

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "mask", "the", "cat")
    backend = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    return TransformersTokenizer(backend)


def test_the_masks_name_is_text(saved_models: Saved):
    tokenizer = word_pieces()
    assert tokenizer.encode("the [MASK] cat") == [8, 5, 7, 6, 9]
    assert tokenizer.encode("[CLS] the [MASK]") == [2, 8, 5, 7, 6]  # as in a chat template
    assert tokenizer.encode("the cat") == [8, 9]
    model = harness(saved_models("bert"), mc_num=2)  # its tokenizer knows whole words alone
    with pytest.raises(ValueError, match="the text holds the mask's own name"):
        model.loglikelihood(asked("loglikelihood", ("the", " <mask>")), True)


def test_answers_end_at_special_tokens(saved_models: Saved, monkeypatch: pytest.MonkeyPatch):
    model = harness(saved_models("bert"), mc_num=2)
    pad, unknown, eos = 0, 1, 2
    the, cat, dog = model.tok_encode("the cat dog")

    def decoded(*tokens: int) -> str:
        model._answers.__dict__.pop("_ends", None)
        return model._answers.decode(tokens)

    assert decoded(the, unknown, cat, eos, dog) == decoded(the, cat, pad, dog) == "the cat"
    assert decoded(the, MASK) == "the[MASK]"
    assert decoded(the, dog, cat) == "the dog cat"
    settings = SimpleNamespace(eos_token_id=[eos, dog])
    monkeypatch.setattr(model.network.model.network, "generation_config", settings, raising=False)
    assert decoded(the, dog, cat) == "the"
    model.tokenizer.add_tokens(["<|eot_id|>"], special_tokens=True)
    assert decoded(the, len(model.tokenizer) - 1, cat) == "the"


def test_a_gap_leaves_room_for_the_context(saved_models: Saved):
    model = harness(saved_models("bert"), mc_num=2, max_length=8, gen_length=8)
    with pytest.raises(ValueError, match=r"^gen_length: expected 1 to 7 .* max_length=8, got 8"):
        model._gap_after("the cat", {})
    assert model._gap_after("", {}).length == 8
    model = harness(saved_models("bert"), mc_num=2, max_length=8)
    with pytest.raises(ValueError, match=r"^gen_length \(of the task: max_gen_toks\)"):
        model._gap_after("the cat", {"max_gen_toks": 8})
    request = model._gap_after("the cat", {"max_gen_toks": 7})
    assert (request.prompt_length, request.length) == (1, 8)


# Arguments


def test_bools_may_be_text(saved_models: Saved):
    model = harness(saved_models("bert"), mc_num=2, check_greedy="False", trust_remote_code="TRUE")
    assert model.check_greedy is False
    assert harness(saved_models("bert"), check_greedy="true").check_greedy is True
    for name in ("check_greedy", "trust_remote_code"):
        for value in ("no", 1, None):
            with pytest.raises(TypeError, match=f"{name} must be a bool"):
                harness(saved_models("bert"), **{name: value})


def test_arguments_are_checked_at_once(saved_models: Saved, uniform: Path):
    for options, part in (
        ({"method": "confidence"}, "needs the absorbing graph"),
        ({"method": "hit"}, "needs the absorbing graph"),
        ({"method": "entropy_bound", "block_length": 4}, "block_length"),
        ({"check_greedy": True}, "check_greedy"),
        ({"times": "random"}, "times must be one of"),
        ({"times": "antithetic", "mc_num": 6}, "mc_num must be a multiple of 4"),
        ({"mc_num": 1}, "mc_num must be at least 2"),
    ):
        with pytest.raises(ValueError, match=part):
            harness(uniform, **options)
    with pytest.raises(ValueError, match=r"max_length: .* positions for 64 tokens, got 65"):
        harness(saved_models("bert"), max_length=65)
    assert harness(saved_models("bert"), max_length=64).max_length == 64


def test_the_default_method_fits_the_graph(uniform: Path):
    model = harness(uniform, mc_num=2)
    assert (model._config_of({}).method, model._config_of({}).steps) == ("analytic", 128)
    model = harness(uniform, mc_num=2, method="entropy_bound", steps=3)
    [text] = model.generate_until(asked("generate_until", ("ab", {"max_gen_toks": 3})), True)
    assert len(text) <= 3


def test_top_p_and_top_k(saved_models: Saved):
    model = harness(saved_models("bert"), mc_num=2, top_p=0.9)
    assert model._config_of({}).temperature == 0
    assert model._config_of({}).top_p == 1
    assert model._config_of({"do_sample": True}).top_p == 0.9
    fixed = harness(saved_models("bert"), mc_num=2, temperature=0.5)
    config = fixed._config_of({"do_sample": True, "temperature": 1.0, "top_p": 0.8})
    assert (config.temperature, config.top_p) == (0.5, 0.8)
    with pytest.warns(UserWarning, match="top_k is ignored"):
        fixed._config_of({"do_sample": True, "top_k": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed._config_of({"do_sample": True, "top_k": 5})
