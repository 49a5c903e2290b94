"""`sf.load` and its TextModel: as the command line, whatever the batch, and clear in its errors."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sedd_fast as sf
from sedd_fast.cli import main
from sedd_fast.sampling import SamplerConfig, infill
from sedd_fast.text import drawing
from sedd_fast.text.requests import from_prompt

SHORT = "the cat sat on a mat. "


@pytest.fixture
def records(capsys, result):
    """`records("sample", ...)`: the JSON objects that the command prints for the run."""

    def run(command, *args):
        capsys.readouterr()
        words = [command, "-m", result.run_dir, "--json", *args]
        assert main([str(word) for word in words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_samples_are_those_of_the_command(model, records):
    args = ["--prompt", "the ", "-n", 3, "--seed", 7, "--steps", 4, "--top-p", 0.9, "-l", 20]
    expected = [record["text"] for record in records("sample", *args)]
    options = {"prompt": "the ", "seed": 7, "steps": 4, "top_p": 0.9, "length": 20}
    assert model.sample(3, **options) == expected
    assert len(set(expected)) > 1
    assert model.sample(3, **options, batch_size=2) == expected
    assert model.sample(2, **options) == expected[:2]
    assert model.sample(3, **{**options, "seed": 8}) != expected


def test_infilled_texts_are_those_of_the_command(model, records):
    template, options = "the [6] sat [4]", {"steps": None, "method": "hit", "seed": 2}
    args = ["--template", template, "-n", 2, "--seed", 2, "--method", "hit", "--one-by-one"]
    expected = [record["text"] for record in records("infill", *args)]
    assert model.infill(template, n=2, **options) == expected
    assert model.infill(template, **options) == expected[0]
    args = ["--prefix", "the ", "--suffix", "mat.", "--middle", "sat@12", "--seed", 2]
    [record] = records("infill", *args, "--keep-after-eot", "--steps", 4)
    pieces = {"prefix": "the ", "suffix": "mat.", "middle": [("sat", 12)], "steps": 4}
    assert model.infill(**pieces, seed=2, keep_after_eot=True) == record["text"]
    assert (record["text"][:4], record["text"][12:15]) == ("the ", "sat")


def test_bits_per_token_are_those_of_the_command(model, records, text_file):
    args = ["--samples", 4, "--max-blocks", 9, "--seed", 5, "--mode", "normalised"]
    [record] = records("eval", text_file, *args)
    options = {"samples": 4, "max_blocks": 9, "seed": 5, "mode": "normalised"}
    found = model.bits_per_token(text_file.read_text(), **options, batch_size=4)
    for name, value in (
        ("bits_per_token", found.value), ("bits_per_token_stderr", found.stderr),
        ("bits_per_char", found.bits_per_char), ("perplexity", found.perplexity),
        ("bits_per_char_stderr", found.bits_per_char_stderr),
    ):  # fmt: skip
        assert value == pytest.approx(record[name], rel=1e-6)
    assert found.stderr > 0
    assert str(found).startswith(f"{found.value:.4f} +- {found.stderr:.4f} bits per token, ")


def test_a_text_of_any_length_is_bounded(model):
    one = model.bits_per_token("cat", samples=4)
    assert one.bound.total_tokens == 4  # with end-of-text
    assert one.bits_per_char == pytest.approx(one.value * 4 / 3)
    long = model.bits_per_token(SHORT * 20, samples=2)
    assert (long.bound.tokens, len(long.bound.nats), long.text.left_over) == (32, 13, 25)
    whole = model.bits_per_token([SHORT * 2, "dogs ran"], samples=2, wrap="separate", length=16)
    assert (whole.bound.total_tokens, whole.text.left_over) == (45 + 9, 0)
    assert math.isfinite(model.bits_per_token("é" * 8, samples=2).value)  # unknown characters


def test_texts_end_at_end_of_text(model):
    cut = model.sample(20, steps=1, seed=0)
    whole = model.sample(20, steps=1, seed=0, keep_after_eot=True)
    assert any("<|endoftext|>" in text for text in whole)
    assert cut == [text.split("<|endoftext|>")[0] for text in whole]


def test_torch_seeds_what_has_no_seed(model):
    torch.manual_seed(1)
    first, other = (model.sample(steps=2) for _ in range(2))
    torch.manual_seed(1)
    assert model.sample(steps=2) == first != other


def test_progress_is_silent_or_a_function(model, capsys, monkeypatch):
    seen = []
    model.sample(3, steps=2, batch_size=2, seed=1, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2  # the denoising step included
    seen.clear()
    model.bits_per_token(SHORT * 20, samples=100, progress=lambda *done: seen.append(done))
    assert seen == [(2, 13), (4, 13), (6, 13), (8, 13), (10, 13), (12, 13), (13, 13)]
    monkeypatch.setattr("sedd_fast.progress.LINE_SECONDS", 0)
    model.sample(steps=2)
    assert capsys.readouterr() == ("", "")
    model.sample(steps=2, progress=True)
    assert "sampling: 3 of 3 steps" in capsys.readouterr().err


def test_steps_are_those_of_the_network_that_is_sampled(model, monkeypatch):
    seen = []

    def fill(network, graph, noise, tokens, known, **options):
        seen.append(network)
        return tokens

    stand_in = object()  # on a GPU a CudaGraphNetwork
    monkeypatch.setattr(drawing, "fill", fill)
    monkeypatch.setitem(vars(model.network), "sampled", stand_in)
    model.sample(steps=2)
    assert seen == [stand_in]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.infill("the cat"), "template: there is no gap"),
        (lambda m: m.infill("the [x] cat"), "the '\\[' at character 4 is part of no gap"),
        (lambda m: m.infill("the [3]", suffix="x"), "it gives all the text and its length; leave"),
        (lambda m: m.infill("the [3]", length=9), "leave out length"),
        (lambda m: m.infill(), "nothing is given"),
        (lambda m: m.infill(b"the [3]"), "template: expected a text"),
        (lambda m: m.infill("é [3]"), "template 'é ': text: the vocabulary of"),
        (lambda m: m.infill(prefix="the cat", middle=[("sat", 3)]), "overlap what prefix gave"),
        (lambda m: m.infill(middle=[("sat", -1)]), "middle: expected pairs"),
        (lambda m: m.infill("the [3]", n=0), "n must be at least 1, got 0"),
        (lambda m: m.sample(prompt=SHORT * 2), "prompt: 44 tokens from token 0 do not fit"),
        (lambda m: m.sample(length=0), "length must be at least 1"),
        (lambda m: m.sample(seed=-1), "seed must be at least 0"),
        (lambda m: m.sample(batch_size=0), "batch_size must be at least 1"),
        (lambda m: m.sample(method="fast"), "method must be one of 'analytic'"),
        (lambda m: m.sample(temperature=0), "temperature must be positive"),
        (lambda m: m.sample(step=3), "unknown option 'step'; did you mean steps\\?"),
        (lambda m: m.infill("a [2]", request=1), "unknown option 'request'; there are steps, "),
        (lambda m: m.sample(prompt=3), "prompt must be a text, got int"),
        (lambda m: m.sample(prompt=b"x"), "prompt must be a text, got bytes"),
        (lambda m: m.sample(seed=2**64), "seed must be at most 18446744073709551615"),
        (lambda m: m.sample(theta="x"), "theta must be a number, got str"),
        (lambda m: m.sample(eps=None), "eps must be a number, got NoneType"),
        (lambda m: m.infill(middle=("then", 5)), 'middle: expected pairs .*, got "then"'),
        (lambda m: m.infill(middle=5), "middle: expected a list of pairs"),
        (lambda m: m.sample(1.5), "n must be an int"),
        (lambda m: m.bits_per_token(""), "text: it is empty"),
        (lambda m: m.bits_per_token([]), "text: it is empty"),
        (lambda m: m.bits_per_token(3), "a text or a list of texts, got int"),
        (lambda m: m.bits_per_token(["a", b"c"]), "a text or a list of texts, got list"),
        (lambda m: m.bits_per_token("cat", samples=0), "samples"),
        (lambda m: m.bits_per_token("cat", mode="best"), "mode"),
        (lambda m: m.bits_per_token("cat", wrap="none"), "wrap must be one of"),
        (lambda m: m.bits_per_token("cat", max_blocks=0), "max_blocks must be at least 1"),
        (lambda m: m.bits_per_token("cat", samples=1.5), "samples must be an int, got float"),
        (lambda m: m.bits_per_token("cat", samples="x"), "samples must be an int, got str"),
        (lambda m: m.bits_per_token("cat", batch_size=2.0), "batch_size must be an int"),
        (lambda m: m.bits_per_token("cat", seed=None), "seed must be an int, got NoneType"),
        (lambda m: m.bits_per_token("cat", seed=-1), "seed must be at least 0"),
        (lambda m: m.bits_per_token("cat", seed=2**64), "seed must be at most 1844674407370955161"),
    ],
)
def test_what_does_not_fit_is_named(call, message, model):
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)


def test_integers_of_numpy_count(model):
    two, eight = np.int64(2), np.int32(8)
    for kept in (sf.Absorbing(eight).vocab_size, SamplerConfig(steps=eight).steps):
        assert (kept, type(kept)) == (8, int)
    drawn = sf.sample(model.model, model.model.graph, model.model.noise, (two, eight), steps=two)
    assert drawn.shape == (2, 8)
    assert model.sample(two, length=eight, steps=two, seed=two, batch_size=two) == model.sample(
        2, length=8, steps=2, seed=2, batch_size=2
    )
    given = {"prefix": "cat", "steps": 2, "seed": 1}
    assert model.infill(middle=[("dog", eight)], length=np.int64(16), **given) == model.infill(
        middle=[("dog", 8)], length=16, **given
    )
    found, same = (
        model.bits_per_token(SHORT, samples=n, batch_size=n, max_blocks=n, seed=n, length=m)
        for n, m in ((two, eight), (2, 8))
    )
    assert found.value == same.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype must be one of 'float32', 'bfloat16', 'float16', got"),
        ({"device": "tpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"tokenizer": "bytes"}, "tokenizer: it has 257 tokens, the model only"),
        ({"tokenizer": "./none"}, "tokenizer: no file or directory"),
    ],
)
def test_load_refuses(options, message, result):
    with pytest.raises(ValueError, match=message):
        sf.load(result.run_dir, **options)


def test_an_export_loads_and_names_itself(result, model):
    loaded = sf.load(str(result.export), device=torch.device("cpu"), dtype="bfloat16")
    assert loaded.tokenizer == model.tokenizer
    assert isinstance(loaded.model, sf.SEDD)
    assert not loaded.model.training
    assert "length 32, bfloat16 on cpu)" in repr(loaded)
    with pytest.raises(FileNotFoundError, match="none"):
        sf.load("./none")


def test_an_autoregressive_network_samples_and_has_an_exact_likelihood(baseline):
    texts = baseline.sample(3, seed=1, top_p=0.9)
    assert len(set(texts)) == 3
    assert baseline.sample(3, seed=1, top_p=0.9, batch_size=2) == texts
    found = baseline.bits_per_token("a cat to do")
    assert (found.stderr, found.bound.mode) == (0, "likelihood")
    with pytest.raises(ValueError, match="sampled without a prompt and fills no gaps"):
        baseline.infill("a [3]")
    with pytest.raises(ValueError, match="takes temperature and top_p alone"):
        baseline.sample(steps=64)


def test_requests_of_different_lengths_share_a_batch(
    model: sf.TextModel, baseline: sf.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watched(*args: Any, **options: Any) -> Tensor:
        sizes.append((*args[3].shape, options["attention_mask"] is not None))
        return infill(*args, **options)

    monkeypatch.setattr(drawing, "fill", watched)
    config = SamplerConfig("hit", 4)

    def drawn(network: sf.TextModel, lengths: list[int], batch_size: int) -> list[list[int]]:
        prompt = "" if network is baseline else "the"
        requests = [from_prompt(prompt, network.tokenizer, length) for length in lengths]
        settings = SamplerConfig() if network is baseline else config
        found = drawing.draw(requests, network.network, settings, 2, 3, batch_size, True)
        return [sample.tokens for _, sample in found]

    for network in (model, baseline):
        lengths = [8, 12, 10]
        together = drawn(network, lengths, 16)
        assert [len(tokens) for tokens in together] == [8, 8, 12, 12, 10, 10]
        assert together == drawn(network, lengths, 1)
    assert sizes == [(6, 12, True), *((1, n, False) for n in (8, 8, 12, 12, 10, 10))]
    sizes.clear()
    drawn(model, [8, 8, 200, 9, 9, 9], 16)  # at most as much padding as text
    assert sizes == [(4, 8, False), (4, 200, True), (4, 9, False)]
