"""`sedd-fast eval`, `sample` and `infill` on masked language models of Hugging Face."""

import json

import pytest
import torch

import sedd_fast as sf
from helpers.masked_models import TOKENS

pytest.importorskip("transformers")

TEXT = "the cat sat on a mat and it was the dog\n" * 4


@pytest.mark.parametrize("kind", ["llada", "dream", "mdlm", "bert"])
def test_eval_of_a_text(kind, saved_models, call, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    args = ["eval", "--model", saved_models(kind), file, "--length", 8, "--samples", 4, "--json"]
    result = call(*args, "--trust-remote-code", "--mode", "normalised")
    assert result.code == 0, result.err
    (record,) = result.records
    assert (record["blocks"], record["block_length"]) == (5, 8)
    model = sf.load(saved_models(kind), trust_remote_code=True)
    by_hand = model.bits_per_token(TEXT, mode="normalised", samples=4, length=8)
    assert record["bits_per_token"] == pytest.approx(by_hand.value, rel=1e-6)
    assert str(saved_models(kind)) in record["tokenizer_name"]
    named = "masked_lm" if kind == "bert" else kind
    again = call(*args, "--trust-remote-code", "--mode", "normalised", "--adapter", named)
    assert again.out == result.out


@pytest.mark.parametrize("kind", ["mdlm", "dream"])
def test_eval_of_completions(kind, saved_models, call, tmp_path):
    """Of different lengths: padded, or one by one for a network that takes no mask."""
    rows = [("the cat", " sat on a"), ("the dog", " ran"), ("it was a mat and", " the tree was it")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    result = call(
        "eval", "--model", saved_models(kind), file, "--trust-remote-code", "--samples", 64,
        "--mode", "normalised", "--format", "prompt_completion", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    model = sf.load(saved_models(kind), trust_remote_code=True)
    network, total, variance = model.model, 0.0, 0.0
    for prompt, completion in rows:
        given, rest = (model.tokenizer.encode(text) for text in (prompt, completion))
        x_0 = torch.tensor([[*given, *rest, model.tokenizer.eot]])
        bound = sf.likelihood_bound(
            network, x_0, network.graph, network.noise, 64, "normalised",
            loss_mask=torch.arange(x_0.shape[1])[None] >= len(given),
        )  # fmt: skip
        total, variance = total + bound.total_nats, variance + bound.total_stderr**2
    found = result.records[0]
    assert found["tokens"] == 4 + 2 + 5
    assert abs(found["nats"] - total) < 6 * variance**0.5


def test_sample_and_infill(saved_models, call, tmp_path):
    shared = ["--model", saved_models("llada"), "--trust-remote-code", "--seed", 3, "--json"]
    result = call("sample", *shared, "--length", 9, "--prompt", "the cat", "--method", "hit",
                  "--steps", 4, "-n", 2)  # fmt: skip
    assert result.code == 0, result.err
    assert len(result.records) == 2
    assert all(record["text"].startswith("the cat") for record in result.records)
    lines = tmp_path / "gaps.jsonl"
    lines.write_text('{"template": "the [3] sat"}\n{"template": "the [1] ran to a [2] tree"}\n')
    for kind in ("llada", "mdlm"):
        shared[1] = saved_models(kind)
        filled = call("infill", *shared, "--from", lines, "--steps", 4)
        assert filled.code == 0, filled.err
        assert [len(record["tokens"]) for record in filled.records] == [5, 8]


def test_errors_are_one_line_with_the_remedy(saved_models, run_dir, call, tmp_path):
    for command in ("eval", "sample", "infill"):
        untrusted = call(command, "--model", saved_models("llada"))
        assert (untrusted.code, untrusted.err.count("\n")) == (2, 1)
        assert "add --trust-remote-code" in untrusted.err
        own = call(command, "--model", run_dir, "--adapter", "llada")
        assert (own.code, "leave it out" in own.err) == (2, True)
        wrong = call(command, "--model", run_dir, "--adapter", "gpt2")
        assert (wrong.code, "masked_lm" in wrong.err) == (2, True)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    unknown = call("sample", "--model", tmp_path)
    assert (unknown.code, "llada, dream, mdlm, masked_lm" in unknown.err) == (2, True)
    compared = call("tradeoff", "--model", saved_models("bert"))
    assert (compared.code, "this command needs SEDD" in compared.err) == (2, True)
    assert sf.load(saved_models("bert")).model.graph.dim > TOKENS
