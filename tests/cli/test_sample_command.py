"""`sedd-fast sample`: what is drawn, its record, and every sampler."""

import re

import pytest


def test_sample_json_is_reproducible(run_dir, call):
    args = ["sample", "--model", run_dir, "--num-samples", 2, "--steps", 4, "--seed", 3, "--json"]
    first, again = call(*args), call(*args)
    assert first.code == 0
    assert first.out == again.out
    assert len(first.records) == 2
    record = first.records[0]
    assert record["settings"] == {
        "model": str(run_dir / "export"), "num_samples": 2, "batch_size": 16, "length": 32,
        "steps": 4, "method": "analytic", "theta": 0.5, "remask": None,
        "temperature": 1.0, "top_p": 1.0, "legacy_fp32_gumbel": False, "denoise": True,
        "eps": 1e-5, "threshold": 0.9, "entropy_bound": 0.1, "block_length": None,
        "stop_token": None, "guidance": 0.0,
        "seed": 3, "device": record["settings"]["device"], "dtype": "float32",
    }  # fmt: skip
    assert record["given"] == []
    assert record["network_calls"] == 5
    assert record["text"]


def test_sample_is_cut_at_end_of_text_unless_asked_not_to(run_dir, call):
    args = ["sample", "--model", run_dir, "--num-samples", 40, "--steps", 1, "--seed", 0, "--json"]
    cut, whole = call(*args), call(*args, "--keep-after-eot")
    assert any("<|endoftext|>" in record["text"] for record in whole.records)
    for short, long in zip(cut.records, whole.records, strict=True):
        assert long["text"].split("<|endoftext|>")[0] == short["text"]
        assert len(long["tokens"]) == 32


@pytest.mark.parametrize("old", [["--batch", 3], ["--batch", 3, "--at-once", 2]])
def test_old_names_of_options_work_with_a_warning(old, run_dir, call):
    args = ["sample", "--model", run_dir, "--steps", 2, "--seed", 1, "--json"]
    new = call(*args, "--num-samples", 3, "--batch-size", 2 if "--at-once" in old else 16)
    result = call(*args, *old)
    assert (result.code, result.out) == (0, new.out)
    warnings = result.err.splitlines()
    assert "--batch is now called --num-samples" in warnings[0]
    assert len(warnings) == len(old) // 2
    assert new.err == ""
    assert "--batch " not in call("sample", "--help").out


def test_sample_with_prompt_as_plain_text(run_dir, call):
    result = call("sample", "--model", run_dir, "--prompt", "the dogs", "--steps", 4, "-n", 2)
    assert result.code == 0
    texts = re.split(r"=== \d of 2 ===\n", result.out)
    assert len(texts) == 3
    assert all(text.startswith("the dogs") for text in texts[1:])


def test_sample_without_denoising_may_hold_masks(run_dir, call):
    args = ["sample", "--model", run_dir, "--steps", 1, "--no-denoise", "--method", "euler"]
    result = call(*args, "--json", "-n", 4)
    assert result.code == 0
    assert not result.records[0]["settings"]["denoise"]


@pytest.mark.parametrize(
    "args",
    [
        ["--method", "tau_leaping"],
        ["--method", "theta_trapezoidal", "--theta", 0.4],
        ["--method", "hit"],
        ["--method", "hit", "--one-by-one"],
        ["--method", "analytic", "--remask", "cap:0.1", "--temperature", 0.8, "--top-p", 0.9],
        ["--method", "analytic", "--remask", "rescale:0.1:0.5", "--legacy-fp32-gumbel"],
        ["--method", "confidence", "--temperature", 0, "--block-length", 12],
        ["--method", "threshold", "--threshold", 0.1, "--one-by-one"],
        ["--method", "entropy_bound", "--entropy-bound", 2, "--prompt", "the", "--guidance", 0.5],
    ],
)
def test_every_method_draws(args, run_dir, call):
    steps = None if "--one-by-one" in args else 3
    given = [] if steps is None else ["--steps", steps]
    result = call("sample", "-m", run_dir, "--seed", 1, "--json", *given, *args)
    assert result.code == 0
    (record,) = result.records
    assert record["settings"]["method"] == args[1]
    assert record["settings"]["steps"] == steps
    assert "[MASK]" not in record["text"]


def test_a_sample_that_ends_early_takes_fewer_network_calls(run_dir, call):
    """The text is the same with and without what follows its end-of-text."""
    args = ["sample", "-m", run_dir, "--method", "margin", "--block-length", 4, "--seed", 2]
    args += ["-n", 40, "--one-by-one", "--json"]
    cut, whole = call(*args), call(*args, "--keep-after-eot")
    for short, long in zip(cut.records, whole.records, strict=True):
        assert long["text"].split("<|endoftext|>")[0] == short["text"]
        assert long["network_calls"] == 32
    calls = [record["network_calls"] for record in cut.records]
    assert min(calls) < max(calls) == 32
    assert cut.records[0]["settings"]["stop_token"] is not None
    assert whole.records[0]["settings"]["stop_token"] is None
    assert f"{sum(calls) / 40:.1f} network calls a sample, on average" in cut.err
    assert len({tuple(record["tokens"]) for record in cut.records}) > 1
    assert call(*args, "--batch-size", 7).records == [
        record | {"settings": record["settings"] | {"batch_size": 7}} for record in cut.records
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--one-by-one"], "--one-by-one: only valid with --method hit, confidence"),
        (["--one-by-one", "--method", "hit"], "got --method hit --steps 2"),
        (["--method", "theta_trapezoidal", "--theta", 1], "theta must lie in"),
        (["--remask", "loop"], "--remask: expected cap or rescale, with an eta"),
        (["--remask", "cap:much"], "as in cap:0.02, got 'cap:much'"),
        (["--remask", "cap:0.1:0.5:1"], "--remask: expected cap or rescale"),
        (["--remask", "cap", "--method", "hit"], "has an effect with method 'analytic' only"),
        (["--temperature", 0], "temperature must be positive"),
        (["--top-p", 2], "top_p must lie in"),
        (["--threshold", 0.5], "threshold=0.5 has an effect with method 'threshold' only"),
        (["--method", "confidence", "--guidance", 1], "guidance=1.0 has no effect without"),
        (["--method", "confidence", "--block-length", 4], "steps=2 are fewer than the 8 blocks"),
    ],
)
def test_samplers_refuse_in_one_line(args, message, run_dir, call):
    result = call("sample", "-m", run_dir, "--steps", 2, *args)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
