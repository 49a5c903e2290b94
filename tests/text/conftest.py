"""A small run that `sf.train` makes, and an autoregressive network."""

from pathlib import Path

import pytest
import torch

import sedd_fast as sf
from helpers.small_run import SMALL, write_words
from sedd_fast.data.tokenizers import CharTokenizer
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.training import TrainResult


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of small words."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session")
def result(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of 25 steps on it."""
    run_dir = tmp_path_factory.mktemp("runs") / "words"
    return sf.train(text_file, run_dir=run_dir, overrides=SMALL, progress=False)


@pytest.fixture(scope="session")
def model(result: TrainResult) -> sf.TextModel:
    """What it trained."""
    return sf.load(result.run_dir)


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> sf.TextModel:
    """An autoregressive network with random weights."""
    folder = tmp_path_factory.mktemp("ar")
    torch.manual_seed(0)
    config = sf.SEDDConfig(8, hidden_size=8, cond_dim=8, n_blocks=1, n_heads=2, length=24)
    Autoregressive(config).save_pretrained(folder)
    CharTokenizer("a cdot").save(folder)
    return sf.load(folder)
