"""Masked language models of Hugging Face: LLaDA, Dream, MDLM, and BERT and its relatives.

Each predicts p(x_0 | x_t) of masked tokens, which is all that samplers and likelihood bounds ask
of a network. :mod:`sedd_fast.models.adapters` says how the networks of each family are called.

The hidden states are what the network's own forward passes to its head: it runs with the identity
in the head's place. Losses, bounds and reverse steps apply the head themselves, and only where they
need it, so the logits of a batch never exist.
"""

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.extras import import_library
from sedd_fast.files import hub
from sedd_fast.files.paths import expanded
from sedd_fast.models.adapters import (
    TABLE,
    Adapter,
    check_code,
    check_complete,
    check_head_name,
    check_settings,
    default_length,
    find_adapter,
    find_mask,
    longest,
    mask_argument,
    name_of_head,
    read_config,
)
from sedd_fast.models.interface import evaluating
from sedd_fast.models.posterior import PosteriorModel
from sedd_fast.names import ADAPTERS, AdapterName, Precision
from sedd_fast.ops._arguments import check_bool, check_choice, check_count
from sedd_fast.process.graphs import Absorbing
from sedd_fast.process.noise import LogLinearNoise

_PROBED = 4  # tokens of the sequences that a network is tried with
#: Held while a network runs, perhaps without its head.
_LOCKS: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@dataclass(frozen=True)
class MaskedLMConfig:
    """What callers ask of a network's settings.

    Attributes:
        length: default length of a text in tokens.
        vocab_size: number of states, the mask among them: the ids of a tokenizer are below it.
        adapter: name of the adapter.
        model_type: the network's `model_type`.
        most_tokens: the most tokens that the network has positions for; None: no limit.
    """

    length: int
    vocab_size: int
    adapter: AdapterName
    model_type: str
    most_tokens: int | None = None


@dataclass(frozen=True)
class _HeadInput:
    """Function of a network and its inputs: what the network passes to the head of that name."""

    head: str

    def __call__(self, network: nn.Module, *inputs: Tensor, **given: Tensor) -> Any:
        path, _, name = self.head.rpartition(".")
        with _lock_of(network):
            owner = network.get_submodule(path)
            head = getattr(owner, name)
            setattr(owner, name, nn.Identity())
            try:
                return network(*inputs, **given)
            finally:
                setattr(owner, name, head)


class MaskedLanguageModel(PosteriorModel):
    """A masked language model of Hugging Face as a network for every sampler, loss and bound.

    Hidden states are used where the network's logits are the plain output of its head for them,
    which is tried once on a few tokens (:attr:`fused`); else logits are formed. Calls of several
    threads wait for each other, since the identity is in the head's place meanwhile.

    Args:
        network: a network of Hugging Face.
        adapter: "llada", "dream", "mdlm" or "masked_lm".
        mask_index: id of the mask.

    Raises:
        ValueError: the network gives no logits (B, L, states), is not called as the adapter says,
            or the mask is none of its states.

    Example:
        >>> bert = transformers.AutoModelForMaskedLM.from_pretrained("google-bert/bert-base-cased")
        >>> model = MaskedLanguageModel(bert.eval(), "masked_lm", mask_index=103)
        >>> sedd_fast.likelihood_bound(model, tokens, model.graph, model.noise)
    """

    graph: Absorbing

    def __init__(self, network: nn.Module, adapter: AdapterName, mask_index: int) -> None:
        check_choice("adapter", adapter, ADAPTERS)
        found, config = TABLE[adapter], network.config
        check_head_name(network, adapter)
        probe = _probe(network)
        with evaluating(network):
            rows = _logits(_called(network, found, probe)).shape[-1]
        states = min(rows, getattr(config, "vocab_size", rows))
        mask_index = check_count(
            "mask_index", mask_index, 0, f"; the states of the network are 0 .. {states - 1}",
            most=states - 1,
        )  # fmt: skip
        graph, name = Absorbing(states - 1, mask_index), name_of_head(network, found)
        options: dict[str, Any] = {}
        if name is not None:
            options = {"hidden": _HeadInput(name), "head": network.get_submodule(name)}
        super().__init__(network, graph, found.takes_sigma, **options)
        self.noise = LogLinearNoise()
        self.adapter = found
        model_type = str(getattr(config, "model_type", ""))
        self.config = MaskedLMConfig(
            default_length(network), states, adapter, model_type, longest(network)
        )
        self._reads_padding: bool | None = None
        if name is not None and not self._is_exposed(probe):
            self._head_name = self.hidden = None

    @property
    def fused(self) -> bool:
        """Whether losses, bounds and steps are computed from hidden states."""
        return self._fused_linear() is not None

    @property
    def reads_padding(self) -> bool:
        """Whether the network leaves padding out of its attention, tried once on a few tokens.

        MDLM's network takes no attention mask, and early versions of LLaDA's code ignore it.
        """
        if self._reads_padding is None:
            self._reads_padding = self._tries_padding()
        return self._reads_padding

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        adapter: AdapterName | None = None,
        *,
        trust_remote_code: bool = False,
        mask_index: int | None = None,
        dtype: Precision = "float32",
        device: torch.device | str = "cpu",
    ) -> "MaskedLanguageModel":
        """Load a network in evaluation mode by the name of its directory or hub repository.

        Args:
            name: a directory as `save_pretrained` writes it, or a hub name.
            adapter: "llada", "dream", "mdlm" or "masked_lm"; None: by `model_type` of config.json.
            trust_remote_code: run the Python code that comes with the weights.
            mask_index: id of the mask; None: `mask_token_id` of config.json, the last state
                (mdlm), or the tokenizer's mask token, from which that of config.json must not
                differ (masked_lm).
            dtype: data type of the weights.
            device: where they go.

        Raises:
            TypeError: trust_remote_code is not a bool.
            ValueError: no adapter fits, code that is not trusted, no mask or two, missing weights,
                or a value of the wrong type in config.json.
            FileNotFoundError, OSError: there is no such model.
            MissingLibraryError: transformers is not installed.

        Example:
            >>> model = MaskedLanguageModel.from_pretrained(
            ...     "GSAI-ML/LLaDA-8B-Base", trust_remote_code=True, dtype="bfloat16"
            ... )
        """
        check_bool("trust_remote_code", trust_remote_code)
        transformers = import_library("transformers", "transformers", f"model: {name}")
        settings = read_config(name)
        if settings is None:
            hub.check_model(name)
            raise FileNotFoundError(
                f"model: {name} holds no config.json that could be read; give a directory as "
                "save_pretrained writes it, or the name of a Hub repository"
            )
        check_settings(settings, name)
        if adapter is None:
            adapter = find_adapter(settings, name)
        check_choice("adapter", adapter, ADAPTERS)
        check_code(settings, name, trust_remote_code)
        given: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        source = str(expanded(name)) if expanded(name).is_dir() else str(name)
        load = getattr(transformers, TABLE[adapter].auto_class).from_pretrained
        with hub.access(name):
            try:
                network, report = load(
                    source, dtype=getattr(torch, dtype), output_loading_info=True, **given
                )
            except (AttributeError, ImportError, KeyError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"model: transformers {transformers.__version__} cannot load {name} as "
                    f"{adapter}: {str(error).strip()}; its code may need another version, or a "
                    "library that is not installed"
                ) from error
            check_complete(network, report, name)
            if mask_index is None:
                states = getattr(network.config, "vocab_size", 0)
                mask_index = find_mask(transformers, source, settings, states, adapter, given)
        return cls(network.to(device).eval(), adapter, mask_index).eval()

    def _run(
        self, hidden: Callable[..., Any] | None, indices: Tensor, sigma: Tensor, **given: Tensor
    ) -> Tensor:
        """The network's logits or hidden states, those at position i for token i."""
        most = self.config.most_tokens
        if most is not None and indices.shape[1] > most:
            raise ValueError(
                f"length: the network {type(self.network).__name__} has positions for {most} "
                f"tokens, got {indices.shape[1]}; shorten the text"
            )
        if (mask := given.pop("attention_mask", None)) is not None:
            given = self._mask_of_network(mask)
        assert isinstance(self.network, nn.Module)
        with _lock_of(self.network), _precision(self.network, self.adapter):
            out = _logits(super()._run(hidden, indices, sigma.float(), **given))
        if self.adapter.shifted:
            out = torch.cat((out[:, :1], out[:, :-1]), 1)
        if hidden is not None:
            linear = self._fused_linear()
            return out if linear is None else out.to(linear.weight.dtype)
        return out if self._head_name is not None else out[..., : self.graph.dim]

    def _fused_linear(self) -> nn.Linear | None:
        assert isinstance(self.network, nn.Module)
        with _lock_of(self.network):  # else another thread may have taken the head out
            return super()._fused_linear()

    def _mask_of_network(self, mask: Tensor) -> dict[str, Tensor]:
        """The attention mask as the network reads it; none where nothing is padding.

        Raises:
            ValueError: there is padding, and the network does not read a mask.
        """
        if self.reads_padding:
            return mask_argument(mask, self.adapter)
        if not bool((mask != 0).all()):
            raise ValueError(
                f"attention_mask: the network {type(self.network).__name__} (adapter "
                f"{self.config.adapter}) does not leave padding out; give sequences of one length "
                "at a time (a batch size of 1), without a mask"
            )
        return {}

    def _is_exposed(self, probe: Tensor) -> bool:
        """Whether the head's output for the hidden states is the network's logits."""
        try:
            self.check_head(probe)
        except Exception:  # a network may do anything with what is no output of its head
            return False
        return True

    @torch.no_grad()
    def _tries_padding(self) -> bool:
        """Whether padding with a mask changes the logits less than padding without one."""
        network, adapter = self.network, self.adapter
        assert isinstance(network, nn.Module)
        x = _probe(network)
        padded = torch.cat((x, x.flip(1)), 1)
        mask = (torch.arange(2 * _PROBED, device=x.device) < _PROBED).long()[None]
        argument = mask_argument(mask, adapter)
        with evaluating(network):
            alone = _logits(_called(network, adapter, x))
            try:
                with_mask = _logits(_called(network, adapter, padded, **argument))
            except Exception:  # it takes no such argument, or not in this form
                return False
            without = _logits(_called(network, adapter, padded))
        off, largest = _distance(with_mask, alone), float(alone.abs().max())
        return off <= max(_distance(without, alone) / 4, 1e-5 * largest)


def _lock_of(network: nn.Module) -> Any:
    """The lock of a network; kept beside it, since a network with a lock could not be copied."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(network, threading.RLock())


def _probe(network: nn.Module) -> Tensor:
    """(1, 4) int64, different tokens to try a network with; not the first ones, often special."""
    size = int(getattr(network.config, "vocab_size", 2 * _PROBED))
    device = next(network.parameters()).device
    return (torch.arange(_PROBED, device=device) * (size // 7 + 1) + size // 2)[None] % size


@torch.no_grad()
def _called(network: nn.Module, adapter: Adapter, x: Tensor, **given: Tensor) -> Any:
    level = (torch.ones(len(x), device=x.device),) if adapter.takes_sigma else ()
    with _lock_of(network), _precision(network, adapter):
        return network(x, *level, **given)


def _precision(network: nn.Module, adapter: Adapter) -> AbstractContextManager[object]:
    """Autocast for 16-bit weights of a network that embeds the noise level in float32 (MDLM)."""
    weight = next(network.parameters())
    if adapter.takes_sigma and weight.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(weight.device.type, weight.dtype)
    return nullcontext()


def _logits(out: Any) -> Tensor:
    """The logits in what a network returns."""
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple) else out
    if not isinstance(out, Tensor) or out.dim() != 3:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"network: expected logits of shape (B, L, states) from its forward, got {got}; a "
            "masked language model is needed, with its head"
        )
    return out


def _distance(logits: Tensor, expected: Tensor) -> float:
    return float((logits[:, : expected.shape[1]] - expected).abs().max())
