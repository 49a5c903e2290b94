"""Tiny masked language models of `transformers` with random weights, saved with a tokenizer.

Of BERT, RoBERTa and ModernBERT these are the library's own classes. Of LLaDA, Dream and MDLM they
are stand-ins (:mod:`helpers.remote_code`), saved with their code beside the weights.
"""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "tree", "and", "it", "was")
SPECIAL = ("<pad>", "<unk>", "<eos>", "<mask>")
TOKENS = len(SPECIAL) + len(WORDS)  # of the tokenizer
STATES = 24  # of the networks: the tokenizer has fewer
MASK = SPECIAL.index("<mask>")
#: Stand-ins: class, its config class, settings.
STAND_INS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llada": ("LLaDAModelLM", "LLaDAConfig", {"mask_token_id": MASK}),
    "dream": ("DreamModel", "DreamConfig", {"mask_token_id": MASK}),
    "mdlm": ("MDLM", "MDLMConfig", {}),
}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "pad_token_id": 0,
}


def save_tokenizer(directory: Path) -> None:
    """One token a word, special tokens first; no token for the end of a text but <eos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", mask_token="<mask>",
        pad_token="<pad>",
    ).save_pretrained(directory)  # fmt: skip


def save_model(kind: str, directory: Path, **settings: Any) -> Path:
    """A network of that kind and a tokenizer; `settings` are more of its config.

    Args:
        kind: "llada", "dream", "mdlm", "bert", "roberta" or "modernbert".
    """
    torch.manual_seed(0)
    network = _stand_in(kind, **settings) if kind in STAND_INS else _of_library(kind, **settings)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.4)
    network.save_pretrained(directory)
    if kind in STAND_INS:
        file = f"modeling_{kind}"
        shutil.copy(Path(__file__).parent / "remote_code" / f"{file}.py", directory)
        model, config, _ = STAND_INS[kind]
        auto = "AutoModelForMaskedLM" if kind == "mdlm" else "AutoModel"
        path = directory / "config.json"
        content = json.loads(path.read_text())
        content["auto_map"] = {"AutoConfig": f"{file}.{config}", auto: f"{file}.{model}"}
        path.write_text(json.dumps(content))
    save_tokenizer(directory)
    return directory


def _stand_in(kind: str, **settings: Any) -> torch.nn.Module:
    module = importlib.import_module(f"helpers.remote_code.modeling_{kind}")
    model, config, own = STAND_INS[kind]
    return getattr(module, model)(getattr(module, config)(STATES, **{**own, **settings}))


def _of_library(kind: str, **settings: Any) -> torch.nn.Module:
    import transformers

    name = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}[kind]
    options: dict[str, Any] = {"vocab_size": STATES, "max_position_embeddings": 64, **SIZES}
    if kind == "modernbert":
        options |= {"bos_token_id": 2, "eos_token_id": 2, "cls_token_id": 2, "sep_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**options, **settings)
    return getattr(transformers, f"{name}ForMaskedLM")(config)


class Saved:
    """Networks of these kinds in folders of `root`, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, kind: str, **settings: Any) -> Path:
        words = (f"{key}-{value}" for key, value in settings.items())
        folder = self.root / "_".join((kind, *words))
        return folder if folder.is_dir() else save_model(kind, folder, **settings)
