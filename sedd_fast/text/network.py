"""A trained network with its tokenizer and the text of its run, by the name of its files."""

import functools
from dataclasses import dataclass

import torch

from sedd_fast.backends import registry
from sedd_fast.data.completions import CompletionLengths, load_completion_lengths
from sedd_fast.data.corpus import Corpus, load_corpus
from sedd_fast.data.tokenizers import (
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    tokenizer_beside,
)
from sedd_fast.models import networks
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.cuda_graph import CudaGraphNetwork
from sedd_fast.models.interface import ScoreModel
from sedd_fast.models.sedd import SEDD
from sedd_fast.names import Precision
from sedd_fast.training.config import load_run_config
from sedd_fast.training.run_directory import RunDirectory, weights_of

_ATTEMPTS = 3  # at an export that changes while it is read


@dataclass(frozen=True)
class _Loaded:
    """What a name stands for. `source` is where the weights were found.

    `tokenizer_name` is for a reader: its kind, its size, and where it was found.
    """

    source: str
    tokenizer: Tokenizer
    tokenizer_name: str
    device: torch.device
    precision: Precision

    def autocast(self) -> torch.autocast:
        """A context in which the network runs in `precision`."""
        return autocast(self.device, self.precision)


@dataclass(frozen=True)
class Network(_Loaded):
    """A SEDD network.

    `completions` has the lengths of training on prompts and completions; None for other training.
    """

    model: SEDD
    completions: CompletionLengths | None = None

    @property
    def gap(self) -> int | None:
        """Tokens in which a completion ends, after training on completions."""
        return None if self.completions is None else self.completions.longest

    @functools.cached_property
    def sampled(self) -> ScoreModel:
        """The network to draw samples from; on a GPU its steps are CUDA graphs."""
        return CudaGraphNetwork(self.model) if self.device.type == "cuda" else self.model


@dataclass(frozen=True)
class Baseline(_Loaded):
    """An autoregressive network, the baseline that SEDD is compared with."""

    model: Autoregressive


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products on the device have the data type `precision`."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def load_network(
    name: str | None, tokenizer: str | None, device: str, precision: Precision
) -> Network:
    """Read the weights and the tokenizer of a SEDD network.

    Args:
        name: a run directory of `train`, a directory of weights, or a hub name; None: the model
            that comes with the package.
        tokenizer: used in place of the one beside the weights; None: the one beside the weights.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: the data type of the network's matrix products.

    Raises:
        ValueError, FileNotFoundError: there is no such network, its kind is another, or the
            tokenizer or the device does not fit it; the message says what to do.
    """
    found = load_any(name, tokenizer, device, precision)
    if isinstance(found, Baseline):
        raise ValueError(
            f"model: {found.source} holds an autoregressive network; this command needs SEDD. "
            f"Draw from it: sedd-fast genppl --model {name}; compare with it: sedd-fast tradeoff"
        )
    return found


def load_any(
    name: str | None, tokenizer: str | None, device: str, precision: Precision
) -> Network | Baseline:
    """As `load_network`, for a network of either kind.

    A run that is training replaces its export; where that happened meanwhile it is read again.
    """
    place = choose_device(device)
    name = str(networks.BUNDLED) if name in (None, "bundled") else name
    if name == "":
        raise ValueError("model: got an empty name; give a run directory or a hub name")
    for _ in range(_ATTEMPTS):
        before = _identity(name)
        try:
            return _load(name, tokenizer, place, precision)
        except (OSError, ValueError):
            if _identity(name) == before:
                raise
    return _load(name, tokenizer, place, precision)


def _identity(name: str) -> tuple[int, int] | None:
    """What tells the export of a run from the one that replaces it; None where there is none."""
    try:
        found = RunDirectory(name).export.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _load(
    name: str, tokenizer: str | None, place: torch.device, precision: Precision
) -> Network | Baseline:
    source = weights_of(name)
    model = networks.load(source, device=place)
    size = model.config.vocab_size
    named = _tokenizer_of(source, size) if tokenizer is None else tokenizer
    found = load_tokenizer(named) if tokenizer is None else make_tokenizer(named)
    if found.vocab_size > size:
        raise ValueError(
            f"tokenizer: it has {found.vocab_size} tokens, the model only {size}; give the "
            "tokenizer the model was trained with"
        )
    kind = getattr(found, "name", type(found).__name__)
    name = kind if kind.startswith(named) else f"{kind}, from {named}"
    if isinstance(model, Autoregressive):
        return Baseline(source, found, name, place, precision, model)
    completions = load_completion_lengths(source)
    return Network(source, found, name, place, precision, model, completions)


def corpus_of_run(name: str, network: Network | Baseline, length: int) -> tuple[str, Corpus] | None:
    """The name of a run's training text and its blocks; None where `name` is no run directory."""
    run = RunDirectory(name)
    if not run.config.is_file():
        return None
    config = load_run_config(run.config)
    corpus = load_corpus(
        config.data, length, config.training.seed, network.tokenizer, config.model.length
    )
    return str(config.data.train), corpus


def choose_device(name: str) -> torch.device:
    """The device of that name; ValueError where it is absent or its backend cannot run on it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: {name} is not there (torch sees {torch.cuda.device_count()} CUDA devices); "
            "use cpu; sedd-fast info says why"
        )
    check_backend(device.type)
    return device


def check_backend(device_type: str) -> None:
    """Raise ValueError where the requested backend cannot run on that kind of device."""
    try:
        registry.choose(device_type)
    except RuntimeError as error:
        raise ValueError(f"SEDD_FAST_BACKEND: {error}") from error


def _tokenizer_of(source: str, vocab_size: int) -> str:
    if found := tokenizer_beside(source, vocab_size):
        return found
    raise ValueError(
        f"tokenizer: there is none beside the weights of {source} ({vocab_size} tokens); "
        "name it: a directory, a tokenizer.json, a hub name, or bytes"
    )
