"""The model that comes with the package: its size, its text, and where it is used."""

import json

import pytest

import sedd_fast as sf
from sedd_fast.data.sources import pydoc_text
from sedd_fast.evaluate.words import known_words
from sedd_fast.models.networks import BUNDLED


@pytest.fixture(scope="module")
def bundled():
    return sf.load(device="cpu")


def test_it_is_small_and_described(bundled):
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 8_000_000
    described = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for word in ("sedd-fast train", "PSF", "bits per character", "MIT"):
        assert word in described
    assert bundled.network.source == str(BUNDLED)


def test_its_samples_are_made_of_the_words_of_its_text(bundled):
    samples = bundled.sample(4, steps=64, seed=0)
    assert known_words(samples, [pydoc_text()]) > 0.7


def test_it_is_better_than_a_unigram_model(bundled):
    bound = bundled.bits_per_token(pydoc_text()[200_000:210_000], samples=4)
    assert bound.bits_per_char < 2.0  # a unigram model of its tokens has 2.5


def test_the_command_line_uses_it_where_no_model_is_named(bundled, capsys):
    from sedd_fast.cli import main

    options = ["--steps", "8", "--seed", "1", "--device", "cpu"]
    assert main(["infill", "--template", "The [6] statement [10].", "--json", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = bundled.infill("The [6] statement [10].", steps=8, seed=1)
    assert record["text"] == expected
    assert expected.startswith("The")
    assert " statement" in expected
    assert main(["sample", *options]) == 0
    assert capsys.readouterr().out == bundled.sample(1, steps=8, seed=1)[0] + "\n"
