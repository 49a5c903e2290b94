"""The model "sedd_fast" of lm-evaluation-harness: unusual requests, and arguments that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.masked_models import Saved
from helpers.tiny_models import tiny
from sedd_fast.data.tokenizers import CharTokenizer

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from lm_eval.api.instance import Instance  # noqa: E402

from sedd_fast.text.lm_eval import HarnessModel  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("models"))


def harness(pretrained: Path, **options: Any) -> HarnessModel:
    return HarnessModel(str(pretrained), device="cpu", **options)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]  # type: ignore[arg-type]


# Continuations


def test_a_continuation_that_merges_with_the_context_has_tokens(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
):
    model = harness(saved("bert"), mc_num=4)
    ids = {"the": [4], "cat": [5], "thecat": [6], " ": [], "": []}
    monkeypatch.setattr(model, "tok_encode", lambda text, **_: ids[text])
    [(found, _)] = model.loglikelihood(asked("loglikelihood", ("the", "cat")), True)
    assert found == pytest.approx(-model.scorer.bound([4], [5]).total_nats)
    assert found < 0
    [(found, _)] = model.loglikelihood(asked("loglikelihood", ("the", "")), True)
    assert found == 0
    with pytest.raises(ValueError, match="the continuation ' ' has no token"):
        model.loglikelihood(asked("loglikelihood", ("", " ")), True)
