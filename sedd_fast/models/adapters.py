"""How masked language models of Hugging Face are recognised, loaded and called.

    name        class of transformers    head                           logits at i    called with
    llada       AutoModel                get_output_embeddings()        token i        tokens
    dream       AutoModel                get_output_embeddings()        token i + 1    tokens
    mdlm        AutoModelForMaskedLM     backbone.output_layer.linear   token i        tokens, sigma
    masked_lm   AutoModelForMaskedLM     get_output_embeddings()        token i        tokens

Source: Nie et al. 2025 (arXiv 2502.09992), LLaDA; Ye et al. 2025 (arXiv 2508.15487), Dream; Sahoo
et al. 2024 (arXiv 2406.07524), MDLM; the code published beside each of them.
"""

import contextlib
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sedd_fast.extras import import_library
from sedd_fast.files import hub
from sedd_fast.files.documents import read_json
from sedd_fast.files.hub_vocabulary import has_words
from sedd_fast.files.paths import expanded
from sedd_fast.names import ADAPTERS, AdapterName
from sedd_fast.ops._arguments import whole

#: Default length of a text, at most: LLaDA was trained on 4,096 tokens, Dream on 2,048.
MOST_TOKENS = 1024
#: Settings of a network that limit the length of its inputs.
_LENGTHS = ("max_sequence_length", "max_position_embeddings", "model_length")


@dataclass(frozen=True)
class Adapter:
    """How the networks of one family are loaded and called.

    Attributes:
        model_type: `model_type` of their config.json; None: any type for which transformers has a
            masked language model.
        auto_class: the class of transformers that loads them.
        head: name of their last layer; None: what `get_output_embeddings()` gives.
        shifted: logits at position i are those of token i + 1.
        takes_sigma: the network is called as ``network(tokens, sigma)``.
        takes_pairs: it reads an attention mask of pairs of positions (B, 1, L, L), not (B, L).
        mask_is_last: the mask is the last of the states where the settings do not name it.
    """

    model_type: str | None
    auto_class: str
    head: str | None = None
    shifted: bool = False
    takes_sigma: bool = False
    takes_pairs: bool = False
    mask_is_last: bool = False


TABLE: dict[AdapterName, Adapter] = {
    "llada": Adapter("llada", "AutoModel"),
    "dream": Adapter("Dream", "AutoModel", shifted=True, takes_pairs=True),
    "mdlm": Adapter(
        "mdlm", "AutoModelForMaskedLM", "backbone.output_layer.linear", takes_sigma=True,
        mask_is_last=True,
    ),
    "masked_lm": Adapter(None, "AutoModelForMaskedLM"),
}  # fmt: skip


def read_config(name: str | Path) -> dict[str, Any] | None:
    """The config.json of a directory or hub name; None where there is none to be had."""
    path = expanded(name)
    if path.is_dir():
        with contextlib.suppress(FileNotFoundError):  # a run may be replacing it
            return read_json(path / "config.json")
        return None
    if path.exists() or not hub.may_be_repository(name):
        return None
    from huggingface_hub import hf_hub_download

    try:
        with hub.access(name):
            return read_json(Path(hf_hub_download(str(name), "config.json")))
    except OSError:  # every error of the Hub and of the network is one
        return None


def is_hugging_face(settings: dict[str, Any] | None) -> bool:
    """Whether a config.json is that of a network of transformers, not of this package."""
    return settings is not None and "model_type" in settings and not is_own(settings)


def is_own(settings: dict[str, Any]) -> bool:
    """Whether a config.json is that of a network of this package, or of the original code."""
    inner = settings.get("config", settings)
    return isinstance(inner, dict) and isinstance(inner.get("model"), dict)


def find_adapter(settings: dict[str, Any], name: str | Path) -> AdapterName:
    """The adapter for the `model_type` of a config.json.

    Raises:
        ValueError: there is none.
    """
    model_type = settings.get("model_type")
    for adapter, found in TABLE.items():
        if found.model_type is not None and found.model_type == model_type:
            return adapter
    table = import_library(
        "transformers.models.auto.modeling_auto", "transformers", f"model: {name}"
    )
    if model_type in table.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "masked_lm"
    raise ValueError(
        f"adapter: {name} has the model_type {model_type!r}, which is that of no masked language "
        f"model known here; name one of {', '.join(ADAPTERS)} if it is called as those are"
    )


def check_code(settings: dict[str, Any], name: str | Path, trust_remote_code: bool) -> None:
    """ValueError where code beside the weights is needed, and not trusted."""
    if trust_remote_code or not settings.get("auto_map"):
        return
    table = import_library("transformers.models.auto.configuration_auto", "transformers", "model")
    if settings.get("model_type") not in table.CONFIG_MAPPING_NAMES:
        raise ValueError(
            f"trust_remote_code: {name} comes with Python code of its own, which runs only if you "
            "trust it: read its *.py files, then add --trust-remote-code (in Python "
            "trust_remote_code=True)"
        )


def check_complete(network: nn.Module, report: dict[str, Any], name: str | Path) -> None:
    """ValueError where parameters are not in the files and would be random."""
    parameters = dict(network.named_parameters())
    if missing := sorted(key for key in report["missing_keys"] if key in parameters):
        raise ValueError(
            f"model: the files of {name} lack {len(missing)} weights of {type(network).__name__} "
            f"({', '.join(missing[:3])}); take a checkpoint of the whole masked language model"
        )


def check_settings(settings: dict[str, Any], name: str | Path) -> None:
    """ValueError where a value of a config.json that is read here is of the wrong type."""
    for key in ("model_type", "mask_token_id", "vocab_size", *_LENGTHS):
        value, wanted = settings.get(key), "a whole number of at least 0"
        number = whole(value)
        is_right = number is not None and number >= 0
        if key == "model_type":
            is_right, wanted = isinstance(value, str), "text"
        if value is not None and not is_right:
            raise ValueError(
                f"{key}: expected {wanted} in config.json of {name}, got {reprlib.repr(value)}; "
                "correct it there"
            )


def find_mask(
    transformers: Any,
    source: str,
    settings: dict[str, Any],
    states: int,
    adapter: AdapterName,
    given: dict[str, Any],
) -> int:
    """The mask's id.

    The classes of some settings (XLM) have a default, which is no mask: that of config.json counts.

    Raises:
        ValueError: neither config.json nor the tokenizer name one, or both name different ones.
    """
    named = settings.get("mask_token_id")
    if adapter != "masked_lm" and named is not None:
        return int(named)
    if TABLE[adapter].mask_is_last:
        return states - 1
    found = _mask_of_tokenizer(transformers, source, given)
    if named is None and found is None:
        raise ValueError(
            f"mask_index: neither config.json of {source} (mask_token_id) nor a tokenizer beside "
            "it names the mask; copy its files there, add mask_token_id to config.json, or call "
            "MaskedLanguageModel.from_pretrained(..., mask_index=ID)"
        )
    if named is not None and found is not None and named != found:
        raise ValueError(
            f"mask_index: config.json of {source} has mask_token_id {named}, the tokenizer beside "
            f"it the mask {found}; correct config.json, or call "
            "MaskedLanguageModel.from_pretrained(..., mask_index=ID)"
        )
    return int(named if found is None else found)  # type: ignore[arg-type]


def _mask_of_tokenizer(transformers: Any, source: str, given: dict[str, Any]) -> int | None:
    """The mask of the tokenizer beside the weights; None where there is none."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **given)
    except Exception:  # none beside the weights, or one that transformers cannot make
        return None
    return tokenizer.mask_token_id if has_words(tokenizer) else None


def check_head_name(network: nn.Module, adapter: AdapterName) -> None:
    """ValueError where a network lacks the layer that those of an adapter have."""
    head = TABLE[adapter].head
    if head is not None and head not in dict(network.named_modules()):
        raise ValueError(
            f"adapter: networks of {adapter} have a layer {head}, {type(network).__name__} has "
            "none; take another adapter"
        )


def name_of_head(network: nn.Module, adapter: Adapter) -> str | None:
    """The head's name in the network; None where it is no linear layer of its own."""
    modules = dict(network.named_modules())
    if adapter.head is not None:
        head = modules.get(adapter.head)
    else:
        head = network.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        return None
    return next((name for name, module in modules.items() if module is head), None)


def default_length(network: nn.Module) -> int:
    """The default length of a text: the shortest that the settings and the positions allow."""
    limits = [getattr(network.config, name, None) for name in _LENGTHS]
    found = [MOST_TOKENS, longest(network), *map(whole, limits)]
    return min(limit for limit in found if limit is not None and limit > 0)


def longest(network: nn.Module) -> int | None:
    """The most tokens that the network has positions for; None where nothing limits them."""
    limits = [whole(getattr(network.config, "max_position_embeddings", None))]
    for name, module in network.named_modules():
        # RoBERTa counts positions from padding_idx + 1.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def mask_argument(mask: Tensor, adapter: Adapter) -> dict[str, Tensor]:
    """A mask (B, L) as the keyword argument of the network."""
    if not adapter.takes_pairs:
        return {"attention_mask": mask.long()}
    # Padding attends to padding, so that no row of the attention is empty.
    pairs = torch.eq((mask != 0)[:, None, :, None], (mask != 0)[:, None, None, :])
    return {"attention_mask": pairs}
