"""Directories of random weights for runs that start from them (`model.init`)."""

from dataclasses import replace
from pathlib import Path

import torch

from helpers.tiny_models import tiny
from helpers.tiny_run import settings
from sedd_fast.data.tokenizers import CharTokenizer
from sedd_fast.models.networks import KINDS
from sedd_fast.training.initial_weights import InitialWeights, read_initial
from sedd_fast.training.progress import OnStep, StepInfo

LETTERS = CharTokenizer("abcdefgh")  # 10 tokens; the networks of `saved_network` have 11


def saved_network(folder: Path, kind: str = "sedd", graph: str = "absorbing", **more: int) -> Path:
    """A directory of random weights, with the tokenizer of LETTERS in a directory beside it."""
    config = {"length": 16, "vocab_size": 11, **more}
    torch.manual_seed(1)
    model = KINDS[kind](replace(tiny(graph).config, **config))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder / "weights")
    LETTERS.save(folder / "letters")
    return folder / "weights"


def with_letters(weights: Path) -> list[str]:
    """The settings of a run that starts from what `saved_network` wrote."""
    return [f"model.init={weights}", f"data.tokenizer={weights.parent / 'letters'}"]


def initial(text_file: Path, *more: str) -> InitialWeights:
    """What a tiny run with these settings starts from."""
    return read_initial(settings(text_file, Path("unused"), *more))


def stop_at(step: int) -> OnStep:
    """Ends a run as a killed process would, without a checkpoint of this step."""

    def stop(info: StepInfo) -> None:
        if info.step == step:
            raise RuntimeError("stopped")

    return stop
