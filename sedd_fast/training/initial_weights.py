"""The trained weights that a new run starts from (`model.init`), with their settings and tokenizer.

The network of the run is that of the weights: its sizes, kind, graph and noise become settings of
the run, so that a resumed run reads neither the weights nor their settings again. `model.length`,
`model.dropout` and everything outside the network stay as they are set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sedd_fast.data.tokenizers import (
    GPT2_TOKENS,
    Tokenizer,
    is_learned,
    load_tokenizer,
    make_tokenizer,
    tokenizer_beside,
)
from sedd_fast.models import checkpoint
from sedd_fast.models.checkpoint import Checkpoint
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.networks import BUNDLED, KINDS
from sedd_fast.training.config import changed
from sedd_fast.training.run_directory import weights_of
from sedd_fast.training.settings import TrainConfig

SETTING = "model.init"
_COMPARED = 500  # tokens of two vocabularies
#: Presets set most of these sizes, so that a value does not say what the user wants.
_SIZES = ("hidden_size", "cond_dim", "n_blocks", "n_heads", "mlp_ratio")


class InitialWeights(NamedTuple):
    """The settings of the run with those of the weights, the tokenizer, and the weights."""

    config: TrainConfig
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def read_initial(config: TrainConfig, tokenizer: Tokenizer | None = None) -> InitialWeights:
    """Read the network that `model.init` names.

    Args:
        config: the settings of the run, with `model.init`.
        tokenizer: that of a run which was started before; None: a new run. It then has the
            tokenizer beside the weights where `data.tokenizer` names one that would be learned from
            the text, else that of `data.tokenizer`.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: its files are damaged, or a setting or the tokenizer does not fit it.
    """
    name = str(config.model.init)
    source = str(BUNDLED) if name == "bundled" else weights_of(name, SETTING)
    with _named_setting():
        saved = checkpoint.read(source, None)
        network = checkpoint.check(saved, KINDS[saved.kind])
    config = _with_settings_of(network, saved, config)
    return InitialWeights(config, _tokenizer(config, saved, network.vocab_size, tokenizer), saved)


@contextmanager
def _named_setting() -> Iterator[None]:
    """Put the setting's name before the text of an error about the files that it names."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{SETTING}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{SETTING}: {error}") from error


def _with_settings_of(network: SEDDConfig, saved: Checkpoint, config: TrainConfig) -> TrainConfig:
    """The settings of a run with the network, the graph and the noise of the weights.

    ValueError where a setting asks for another value than that of the weights. A setting that has
    its default asks for nothing.
    """
    if config.model.length > network.length:
        raise ValueError(
            f"model.length: {config.model.length} exceeds the {network.length} tokens that the "
            f"weights of {saved.source} were trained with; take at most {network.length}"
        )
    model = {name: getattr(network, name) for name in (*_SIZES, "vocab_size", "scale_by_sigma")}
    sections: dict[str, dict[str, Any]] = {
        "graph": {"type": network.graph},
        "noise": {
            "type": network.noise,
            "eps": network.noise_eps,
            "sigma_min": network.sigma_min,
            "sigma_max": network.sigma_max,
        },
        "model": model | {"kind": _kind(config, saved, network)},
    }
    defaults = TrainConfig()
    for section, values in sections.items():
        for key in values.keys() - {*_SIZES, "kind"}:
            wanted, default = (getattr(getattr(c, section), key) for c in (config, defaults))
            if wanted not in (default, values[key]):
                raise ValueError(
                    f"{section}.{key}: the weights of {saved.source} were trained with "
                    f"{values[key]}, got {wanted}; leave {section}.{key} out"
                )
    try:
        return changed(config, sections)
    except ValueError as error:  # an objective that does not fit the network
        raise ValueError(f"{SETTING}: with the network of {saved.source}: {error}") from error


def _kind(config: TrainConfig, saved: Checkpoint, network: SEDDConfig) -> str:
    """The kind of network: that of the weights, or posterior in place of sedd.

    At a mask, the posterior s / sum(s) of SEDD's scores is the softmax of its head's output, and
    `PosteriorSEDD` has weights of the same names and shapes.
    """
    wanted: str | None = config.model.kind
    if config.objective.type is not None and config.network_kind == "posterior":
        wanted = "posterior"
    if wanted is None or wanted == saved.kind:
        return saved.kind
    if (saved.kind, wanted, network.graph) == ("sedd", "posterior", "absorbing"):
        return wanted
    by_kind = config.model.kind is not None
    setting = "model.kind" if by_kind else "objective.type"
    remedy = "leave model.kind out" if by_kind else "take objective.type=score_entropy"
    asked = wanted if by_kind else f"{config.objective.type}, which needs kind {wanted}"
    raise ValueError(
        f"{setting}: the weights of {saved.source} are those of a network of kind {saved.kind} "
        f"({network.graph}), got {asked}; {remedy} (of another kind only sedd weights of the "
        "absorbing graph can be used, for kind posterior)"
    )


def _tokenizer(
    config: TrainConfig, saved: Checkpoint, vocab_size: int, of_run: Tokenizer | None
) -> Tokenizer:
    """The tokenizer of the run; ValueError where it has more tokens than the network."""
    found, name, is_other = of_run, "the tokenizer of the run", False
    if found is None:
        name = config.data.tokenizer
        if not is_learned(name):
            found, is_other = make_tokenizer(name), True
        elif beside := tokenizer_beside(saved.source, vocab_size):
            found, name = load_tokenizer(beside), beside
        else:
            raise ValueError(
                f"data.tokenizer: {name} would be learned from the text, and there is no tokenizer "
                f"beside the weights of {saved.source} ({vocab_size} tokens); name the one that "
                "they were trained with: a directory, a tokenizer.json, a hub name, or bytes"
            )
    beside = tokenizer_beside(saved.source, vocab_size)
    if found.vocab_size > vocab_size or (is_other and not _has_tokens_of(beside, found)):
        only = "only " * (found.vocab_size > vocab_size)
        own = f": data.tokenizer={beside}" * bool(beside and beside != name)
        raise ValueError(
            f"data.tokenizer: {name} has {found.vocab_size} tokens, the weights of {saved.source} "
            f"{only}{vocab_size}: they are weights of another vocabulary; name the tokenizer that "
            f"they were trained with{own}"
        )
    return found


def _has_tokens_of(beside: str | None, found: Tokenizer) -> bool:
    """Whether a tokenizer has the tokens of the one beside the weights, where there is one.

    It may add a chat template, so that the vocabularies are compared by a sample of their tokens.
    """
    if beside is None:
        return True
    if beside == "gpt2":
        return found.vocab_size == GPT2_TOKENS
    own = load_tokenizer(beside)
    numbers = range(0, own.vocab_size, max(1, own.vocab_size // _COMPARED))
    return own.vocab_size == found.vocab_size and all(
        own.decode([i]) == found.decode([i]) for i in numbers
    )
