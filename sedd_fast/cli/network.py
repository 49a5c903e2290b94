"""A trained network with its tokenizer, as --model, --tokenizer, --device and --dtype name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch

from sedd_fast.backends import registry
from sedd_fast.data.tokenizers import MARKER, Tokenizer, load_tokenizer, make_tokenizer
from sedd_fast.models import networks
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.checkpoint import CONFIG
from sedd_fast.models.sedd import SEDD
from sedd_fast.train.run_directory import RunDirectory

_TOKENIZER_FILES = (MARKER, "tokenizer.json", "vocab.json")
GPT2_TOKENS = 50_257  # the published checkpoints hold no tokenizer: it is GPT-2's


class Precision(str, Enum):
    """Of the network's matrix products; scores and sums are float32 in any case."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True)
class _Loaded:
    """What the commands ask of --model. `source` is where the weights were found."""

    source: str
    tokenizer: Tokenizer
    device: torch.device
    precision: Precision

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the network in `precision` inside the block."""
        dtype = getattr(torch, self.precision.value)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            yield


@dataclass(frozen=True)
class Network(_Loaded):
    """SEDD."""

    model: SEDD


@dataclass(frozen=True)
class Baseline(_Loaded):
    """The autoregressive baseline."""

    model: Autoregressive


def load_network(name: str, tokenizer: str | None, device: str, precision: Precision) -> Network:
    """Read the weights and the tokenizer.

    Args:
        name: a run directory of `train`, a directory of weights, or a hub name.
        tokenizer: in place of the one beside the weights.
        device: "auto", "cpu", "cuda", "cuda:1", ...

    Raises:
        ValueError, FileNotFoundError: nothing there, or it does not fit; says what to do.
    """
    found = load_any(name, tokenizer, device, precision)
    if isinstance(found, Baseline):
        raise ValueError(
            f"--model: {found.source} holds an autoregressive network; this command needs SEDD. "
            f"Draw from it: sedd-fast genppl --model {name}; compare with it: sedd-fast tradeoff"
        )
    return found


def load_any(
    name: str, tokenizer: str | None, device: str, precision: Precision
) -> Network | Baseline:
    """As `load_network`, of whichever kind it is."""
    where = choose_device(device)
    if name == "":
        raise ValueError("--model: got an empty name; give a run directory or a hub name")
    source = weights_of(name)
    model = networks.load(source, device=where)
    if tokenizer is not None:
        words = make_tokenizer(tokenizer)
    else:
        words = load_tokenizer(_tokenizer_of(source, model.config.vocab_size))
    if words.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"--tokenizer: it has {words.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}; give the tokenizer the model was trained with"
        )
    if isinstance(model, Autoregressive):
        return Baseline(source, words, where, precision, model)
    return Network(source, words, where, precision, model)


def weights_of(name: str) -> str:
    """The directory of weights in a run directory; any other name as it is."""
    run = RunDirectory(Path(name).expanduser())
    if run.export.is_dir():
        return str(run.export)
    if run.config.is_file() and not (run.path / CONFIG).is_file():
        raise ValueError(
            f"--model: the run {run.path} holds no weights yet (they are written with the first "
            f"checkpoint); go on with: sedd-fast train --resume {run.path}"
        )
    return name


def choose_device(name: str) -> torch.device:
    """The device; ValueError where it is not there or its backend cannot run."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device: {name} is not there (torch sees {torch.cuda.device_count()} CUDA devices); "
            "use --device cpu, and sedd-fast info to see why"
        )
    check_backend(device.type)
    return device


def check_backend(device_type: str) -> None:
    """ValueError where the backend asked for cannot run on that kind of device."""
    try:
        registry.choose(device_type)
    except RuntimeError as error:
        raise ValueError(f"SEDD_FAST_BACKEND: {error}") from error


def _tokenizer_of(source: str, vocab_size: int) -> str:
    if any((Path(source) / file).is_file() for file in _TOKENIZER_FILES):
        return source
    if vocab_size == GPT2_TOKENS:
        return "gpt2"
    raise ValueError(
        f"--tokenizer: there is none beside the weights of {source} ({vocab_size} tokens); "
        "name it: a directory, a tokenizer.json, a hub name, or bytes"
    )
