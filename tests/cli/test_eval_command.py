"""`sedd-fast eval`: files, named data sets, the held-out text."""

import json

import pytest


def test_eval_of_a_file_and_of_the_held_out_text(run_dir, text_file, call):
    result = call("eval", "--model", run_dir, text_file, "--max-blocks", 5, "--samples", 4,
                  "--json")  # fmt: skip
    assert result.code == 0
    (record,) = result.records
    assert (record["blocks"], record["block_length"], record["tokens"]) == (5, 32, 160)
    assert record["bits_per_token"] == pytest.approx(record["bits_per_char"], rel=1e-3)
    assert record["perplexity"] == pytest.approx(2 ** record["bits_per_token"])
    assert record["bits_per_token_stderr"] > 0
    assert record["estimator"] == "exact, upper bound, 4 samples a sequence, balanced"
    plain = call("eval", "--model", run_dir, "--samples", 2, "--mode", "paper")
    assert plain.code == 0
    for word in ("held-out part", "not a strict bound", "perplexity", "bits/char", "float32"):
        assert word in plain.out


def test_eval_prints_every_setting(run_dir, text_file, call, tmp_path):
    saved = tmp_path / "found.json"
    result = call("eval", "--model", run_dir, text_file, "--max-blocks", 5, "--samples", 4,
                  "--batch-size", 3, "--seed", 17, "--save", saved)  # fmt: skip
    assert result.code == 0
    record = json.loads(saved.read_text())
    whole = call("eval", "--model", run_dir, text_file, "--samples", 2, "--json").records[0]
    assert (record["blocks"], record["blocks_in_text"]) == (5, whole["blocks"])
    for shown in (
        record["model"], record["tokenizer"], record["tokenizer_name"], record["text"],
        "wrapping     sedd",
        f"160 in 5 of {whole['blocks']} blocks of 32", "exact, upper bound",
        "4 samples a sequence, balanced", "float32 on cpu, 3 blocks at a time",
        "seed 17, lowest time 0.001",
    ):  # fmt: skip
        assert shown in result.out
    assert record["tokenizer_name"] == f"characters, 17 tokens, from {run_dir / 'export'}"


def test_eval_draws_no_samples(run_dir, call):
    """-n is the number of samples of every command; it once was the batch size of this one."""
    assert "-n" in (result := call("eval", "--model", run_dir, "-n", 4)).err
    assert result.code == 2


def test_eval_of_a_named_data_set_from_a_copy(run_dir, call, tmp_path):
    copy, saved = tmp_path / "ptb.txt", tmp_path / "ptb.json"
    copy.write_text("the cat sat on a mat .\n" * 12)
    args = ["eval", "--model", run_dir, "ptb", "--data", copy, "--samples", 4]
    result = call(*args, "--times", "antithetic", "--wrap", "separate", "--save", saved)
    assert result.code == 0
    record = json.loads(saved.read_text())
    assert (record["blocks"], record["block_length"], record["tokens"]) == (12, 23, 12 * 23)
    assert record["text"] == f"ptb, validation, from {copy}"
    wanted = {"times": "antithetic", "wrap": "separate", "mode": "exact", "samples": 4, "seed": 0}
    assert record | wanted == record
    for word in ("antithetic", "separate", "blocks of up to 23"):
        assert word in result.out
    joined = call(*args, "--wrap", "mdlm", "--json").records[0]
    assert joined["block_length"] == 32
    wrong = call("eval", "--model", run_dir, copy, "--data", copy)
    assert (wrong.code, "only valid with the name of one data set" in wrong.err) == (2, True)
    assert "already" in call("eval", "--model", run_dir, "--wrap", "mdlm").err


def test_eval_in_bfloat16_stays_close(run_dir, text_file, call):
    args = ["eval", "--model", run_dir, text_file, "--max-blocks", 5, "--samples", 8, "--json"]
    full, half = (call(*args, "--dtype", d).records[0] for d in ("float32", "bfloat16"))
    assert half["dtype"] == "bfloat16"
    assert half["bits_per_token"] != full["bits_per_token"]
    assert half["bits_per_token"] == pytest.approx(full["bits_per_token"], rel=0.02)


def test_eval_needs_a_text(run_dir, call, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    short = tmp_path / "short.txt"
    short.write_text("the cat")
    assert "no directory" in call("eval", "--model", "./none", short).err
    assert "no file" in call("eval", "--model", run_dir, tmp_path / "none.txt").err
    for texts in (["wikitxt2"], ["wikitext2", "ptb"], [short, "wikitext2"]):
        wrong = call("eval", "--model", run_dir, *texts)
        assert (wrong.code, "did you mean the data set wikitext2?" in wrong.err) == (2, True)
    export = call("eval", "--model", run_dir / "export")
    assert (export.code, "name a TEXT" in export.err) == (2, True)
    result = call("eval", "--model", run_dir, short, "--samples", 2, "--json")
    assert result.records[0]["block_length"] == 8  # seven characters and end-of-text
