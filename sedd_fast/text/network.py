"""A trained network with its tokenizer and the text of its run, by the name of its files."""

import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from sedd_fast.backends import registry
from sedd_fast.data.completions import CompletionLengths, load_completion_lengths
from sedd_fast.data.corpus import Corpus, load_corpus
from sedd_fast.data.hub_tokenizers import TransformersTokenizer
from sedd_fast.data.tokenizers import (
    GPT2_TOKENS,
    MARKER,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    tokenizer_beside,
)
from sedd_fast.models import adapters, networks
from sedd_fast.models.autoregressive import Autoregressive
from sedd_fast.models.cuda_graph import CudaGraphNetwork
from sedd_fast.models.hugging_face import MaskedLanguageModel
from sedd_fast.models.interface import ScoreModel
from sedd_fast.models.sedd import SEDD
from sedd_fast.names import AdapterName, Precision
from sedd_fast.ops._arguments import check_bool
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
    """A diffusion network: SEDD, or a masked language model of Hugging Face.

    `completions` has the lengths of training on prompts and completions; None for other training.
    """

    model: SEDD | MaskedLanguageModel
    completions: CompletionLengths | None = None

    @property
    def gap(self) -> int | None:
        """Tokens in which a completion ends, after training on completions."""
        return None if self.completions is None else self.completions.longest

    @functools.cached_property
    def sampled(self) -> ScoreModel:
        """The network to draw samples from; on a GPU the steps of SEDD are CUDA graphs."""
        # The forward of any network of Hugging Face may synchronise the device.
        captured = self.device.type == "cuda" and isinstance(self.model, SEDD)
        return CudaGraphNetwork(self.model) if captured else self.model

    @property
    def reads_padding(self) -> bool:
        """Whether sequences of different lengths may be padded to one batch."""
        return isinstance(self.model, SEDD) or self.model.reads_padding


@dataclass(frozen=True)
class Baseline(_Loaded):
    """An autoregressive network, the baseline that SEDD is compared with."""

    model: Autoregressive


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which matrix products on the device have the data type `precision`."""
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def check_no_mask(network: Network, tokens: Collection[int]) -> None:
    """ValueError where the tokens of a text hold the mask, which the network would replace."""
    mask = network.model.graph.mask_index
    if mask is not None and mask in tokens:
        raise ValueError(
            "the text holds the mask's own name, which the tokenizer "
            f"({network.tokenizer_name}) cannot encode as text; change the text"
        )


def load_network(
    name: str | None,
    tokenizer: str | None,
    device: str,
    precision: Precision,
    adapter: AdapterName | None = None,
    trust_remote_code: bool = False,
) -> Network:
    """Read the weights and the tokenizer of a diffusion network.

    Args:
        name: a run directory of `train`, a directory of weights, or a hub name; None: the model
            that comes with the package.
        tokenizer: used in place of the one beside the weights; None: the one beside the weights.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: the data type of the network's matrix products, and of the weights of a masked
            language model of Hugging Face.
        adapter: how such a model is called; None: by the `model_type` of its config.json.
        trust_remote_code: run the Python code that comes with such a model.

    Raises:
        ValueError, FileNotFoundError: there is no such network, its kind is another, or the
            tokenizer or the device does not fit it; the message says what to do.
    """
    found = load_any(name, tokenizer, device, precision, adapter, trust_remote_code)
    if isinstance(found, Baseline):
        raise ValueError(
            f"model: {found.source} holds an autoregressive network; this command needs SEDD. "
            f"Draw from it: sedd-fast genppl --model {name}; compare with it: sedd-fast tradeoff"
        )
    return found


def load_any(
    name: str | None,
    tokenizer: str | None,
    device: str,
    precision: Precision,
    adapter: AdapterName | None = None,
    trust_remote_code: bool = False,
) -> Network | Baseline:
    """As `load_network`, for a network of either kind.

    A run that is training replaces its export; where that happened meanwhile it is read again.
    """
    check_bool("trust_remote_code", trust_remote_code)
    place = choose_device(device)
    name = str(networks.BUNDLED) if name in (None, "bundled") else name
    if name == "":
        raise ValueError("model: got an empty name; give a run directory or a hub name")
    if _is_hugging_face(name, adapter):
        return _load_masked_lm(name, tokenizer, place, precision, adapter, trust_remote_code)
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


def _is_hugging_face(name: str, adapter: AdapterName | None) -> bool:
    """Whether a name is that of a masked language model of Hugging Face.

    Raises:
        ValueError: an adapter is given for a network of this package.
    """
    settings = adapters.read_config(weights_of(name))
    if adapter is None:
        return adapters.is_hugging_face(settings)
    if RunDirectory(name).config.is_file() or (settings and adapters.is_own(settings)):
        raise ValueError(
            f"adapter: {name} holds a network of this package, which needs none; leave it out, got "
            f"{adapter}"
        )
    return True


def _load_masked_lm(
    name: str,
    tokenizer: str | None,
    place: torch.device,
    precision: Precision,
    adapter: AdapterName | None,
    trust_remote_code: bool,
) -> Network:
    model = MaskedLanguageModel.from_pretrained(
        name, adapter, trust_remote_code=trust_remote_code, dtype=precision, device=place
    )
    if tokenizer is not None:
        found, named = make_tokenizer(tokenizer), tokenizer
    else:
        found, named = _tokenizer_of_masked_lm(name, model.graph.vocab_size, trust_remote_code)
    _check_size(found, model.config.vocab_size)
    return Network(name, found, _described(found, named), place, precision, model)


def _tokenizer_of_masked_lm(
    name: str, tokens: int, trust_remote_code: bool
) -> tuple[Tokenizer, str]:
    """What transformers makes of the files beside the weights; GPT-2's where there are none."""
    if (Path(name) / MARKER).is_file():
        return load_tokenizer(name), name
    try:
        return TransformersTokenizer.from_pretrained(name, trust_remote_code), name
    except ValueError as error:
        if tokens == GPT2_TOKENS:  # MDLM
            return load_tokenizer("gpt2"), "gpt2"
        raise ValueError(
            f"tokenizer: none beside the weights of {name} could be read ({error}); name one: a "
            "directory, a tokenizer.json, a hub name, or bytes"
        ) from error


def _check_size(tokenizer: Tokenizer, size: int) -> None:
    """ValueError for a tokenizer with more tokens than the network."""
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"tokenizer: it has {tokenizer.vocab_size} tokens, the model only {size}; give the "
            "tokenizer the model was trained with"
        )


def _described(tokenizer: Tokenizer, named: str) -> str:
    """The kind of a tokenizer and where it was found."""
    kind = getattr(tokenizer, "name", type(tokenizer).__name__)
    return kind if kind.startswith(named) else f"{kind}, from {named}"


def _load(
    name: str, tokenizer: str | None, place: torch.device, precision: Precision
) -> Network | Baseline:
    source = weights_of(name)
    model = networks.load(source, device=place)
    size = model.config.vocab_size
    named = _tokenizer_of(source, size) if tokenizer is None else tokenizer
    found = load_tokenizer(named) if tokenizer is None else make_tokenizer(named)
    _check_size(found, size)
    name = _described(found, named)
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
