"""Reading and writing networks: the published format, and the original trainer's directories.

    config.json + model.safetensors (or pytorch_model.bin)     on the Hub or in a directory
    export/ with these                                          a run directory of sedd_fast
    .hydra/config.yaml + checkpoints-meta/checkpoint.pth       of the original; EMA weights are used

The settings are the original's, flat or nested under "config"; `model.type` says which network it
is, "ddit" for SEDD, "posterior" for PosteriorSEDD, "ar" for the autoregressive baseline.
Everything is strict: a weight missing or left over is an error. Pickle files are read as bare
tensors (`weights_only`), so that a checkpoint from a stranger cannot run code.
"""

import contextlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.ema import check_shapes

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
EXPORT = "export"  # the folder of a run directory of this package that holds them
RUN_CONFIG, RUN_STATE = ".hydra/config.yaml", "checkpoints-meta/checkpoint.pth"

# the original's key -> SEDDConfig's field; those with True may be absent
_KEYS = {
    "tokens": ("vocab_size", False),
    "graph.type": ("graph", False),
    "noise.type": ("noise", False),
    "noise.eps": ("noise_eps", True),
    "noise.sigma_min": ("sigma_min", True),
    "noise.sigma_max": ("sigma_max", True),
    "model.hidden_size": ("hidden_size", False),
    "model.cond_dim": ("cond_dim", False),
    "model.length": ("length", True),
    "model.n_blocks": ("n_blocks", False),
    "model.n_heads": ("n_heads", False),
    "model.mlp_ratio": ("mlp_ratio", True),
    "model.dropout": ("dropout", True),
    "model.scale_by_sigma": ("scale_by_sigma", False),
}
_GRAPHS = {"absorb": "absorbing", "uniform": "uniform"}


# kind of network -> its model.type, and the class that reads it
_KINDS = {
    "sedd": ("ddit", "SEDD"),
    "posterior": ("posterior", "PosteriorSEDD"),
    "ar": ("ar", "Autoregressive"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A network on disk: SEDDConfig's fields, state dict, and EMA weights in parameter order.

    `kind` is "sedd", "posterior" or "ar".
    """

    source: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    shadow: list[Tensor] | None = None
    kind: str = "sedd"


def config_from_original(settings: Mapping[str, Any]) -> dict[str, Any]:
    """SEDDConfig's fields from the original's settings, flat or nested under "config".

    Raises ValueError listing the keys that are missing. Other sections (training, data, ...) are
    ignored; an unknown setting of the network itself is warned about.
    """
    settings = settings.get("config", settings)
    flat = dict(flatten(settings))
    missing = [key for key, (_, optional) in _KEYS.items() if not optional and key not in flat]
    if missing:
        raise ValueError(f"the settings lack {', '.join(missing)}: not those of a SEDD network")
    known = {*_KEYS, "model.name", "model.type"}
    if unknown := [key for key in flat if key.startswith("model.") and key not in known]:
        warnings.warn(f"settings of the network that are not known here: {unknown}", stacklevel=2)
    kind_of(settings)
    values = {field: flat[key] for key, (field, _) in _KEYS.items() if key in flat}
    values["graph"] = _GRAPHS.get(values["graph"], values["graph"])
    return values


def kind_of(settings: Mapping[str, Any]) -> str:
    """ "sedd", "posterior" or "ar", as model.type says; ValueError for another type."""
    name = settings.get("config", settings).get("model", {}).get("type", "ddit")
    kinds = {known: kind for kind, (known, _) in _KINDS.items()}
    if name not in kinds:
        raise ValueError(f"model.type must be one of {', '.join(kinds)}, got {name!r}")
    return kinds[name]


def config_to_original(config: SEDDConfig, kind: str = "sedd") -> dict[str, Any]:
    """The settings as the original's config.json holds them (flat form), readable by its code."""
    model = {"name": kind, "type": _KINDS[kind][0]}
    settings: dict[str, Any] = {"graph": {}, "noise": {}, "model": model}
    for key, (field, _) in _KEYS.items():
        section, _, name = key.rpartition(".")
        (settings[section] if section else settings)[name] = getattr(config, field)
    names = {ours: original for original, ours in _GRAPHS.items()}
    settings["graph"] = {"type": names[config.graph], "file": "data", "report_all": False}
    return settings


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything in nested settings."""
    flat: list[tuple[str, Any]] = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        flat += flatten(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return flat


def read(name_or_dir: str | Path, kind: str | None = "sedd", **hub: Any) -> Checkpoint:
    """Read a directory or a Hub repository; see `SEDD.from_pretrained`.

    Raises ValueError where the network is not of the kind asked for (None: any).
    """
    found = _read(name_or_dir, **hub)
    if kind is not None and found.kind != kind:
        (_, holds), (_, wanted) = _KINDS[found.kind], _KINDS[kind]
        raise ValueError(
            f"{found.source} holds the network {holds}, not {wanted}; read it with "
            f"{holds}.from_pretrained, or with sedd_fast.models.networks.load"
        )
    return found


def _read(name_or_dir: str | Path, **hub: Any) -> Checkpoint:
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        for folder in (path, path / EXPORT):
            if (folder / CONFIG).is_file():
                return _read_files(folder / CONFIG, _weights_in(folder), str(folder))
        return _read_run(path)
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory that holds it and {CONFIG}")
    if not _may_be_on_hub(name_or_dir):
        raise FileNotFoundError(
            f"no directory {path}; give one that holds {CONFIG} and {SAFETENSORS}, or the name of "
            "a Hub repository such as louaaron/sedd-small"
        )
    return _read_files(*_download(str(name_or_dir), **hub), str(name_or_dir))


def _may_be_on_hub(name: str | Path) -> bool:
    if isinstance(name, Path) or re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is None:
        return False
    return "/" not in name or not Path(name).parent.is_dir()  # runs/demo beside a folder runs


def _weights_in(directory: Path) -> Path:
    for name in (SAFETENSORS, PICKLE):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds {CONFIG} but neither {SAFETENSORS} nor {PICKLE}")


def _read_files(config: Path, weights: Path, source: str) -> Checkpoint:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} must hold a JSON object, got {type(settings).__name__}")
    state = _load_safetensors(weights) if weights.name == SAFETENSORS else _load_pickle(weights)
    return Checkpoint(source, config_from_original(settings), state, kind=kind_of(settings))


def _read_run(directory: Path) -> Checkpoint:
    missing = [name for name in (RUN_CONFIG, RUN_STATE) if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, and as a run directory of the original trainer it "
            f"lacks {' and '.join(missing)}"
        )
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(OmegaConf.load(directory / RUN_CONFIG), resolve=True)
    if not isinstance(settings, dict):
        raise ValueError(f"{directory / RUN_CONFIG} must hold a mapping of settings")
    state = _load_pickle(directory / RUN_STATE)
    absent = {"model", "ema"} - state.keys()
    if absent or "shadow_params" not in state["ema"]:
        raise ValueError(f"{directory / RUN_STATE} lacks {sorted(absent) or 'ema.shadow_params'}")
    config = config_from_original({str(key): value for key, value in settings.items()})
    return Checkpoint(str(directory), config, state["model"], state["ema"]["shadow_params"])


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error


def allow_numpy_scalars() -> contextlib.AbstractContextManager[Any]:
    """Let ``weights_only`` loading accept numpy numbers.

    The original's warm-up leaves the learning rate as one in the optimiser's state, so that every
    checkpoint it wrote holds it. They are plain numbers: reading them runs no code.
    """
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [np.dtype, type(np.dtype(np.float64))]
    allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return torch.serialization.safe_globals(allowed)


def _load_pickle(path: Path) -> dict[str, Any]:
    """Tensors and plain containers only. Memory-mapped: optimiser moments are never read in."""
    try:
        with allow_numpy_scalars():
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it is damaged, or holds Python objects besides tensors, and "
            "unpickling those can run any code; ask its author for a safetensors file"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict of tensors, got {type(state).__name__}")
    return state


def _download(name: str, **hub: Any) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    try:
        config = hf_hub_download(name, CONFIG, **hub)
        try:
            weights = hf_hub_download(name, SAFETENSORS, **hub)
        except EntryNotFoundError:
            weights = hf_hub_download(name, PICKLE, **hub)
    except OSError as error:  # every error of the Hub and of the network is one
        raise FileNotFoundError(
            f"no directory {name!r} here, and no SEDD network of that name could be had from the "
            f"Hugging Face Hub ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "check the name, the connection, and `hf auth login` for a private repository"
        ) from error
    return Path(config), Path(weights)


def restore(model: nn.Module, saved: Checkpoint) -> None:
    """Load the weights, then the EMA weights over the parameters where the checkpoint has them."""
    try:
        model.load_state_dict(saved.weights)
    except RuntimeError as error:
        problems = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ValueError(
            f"the weights of {saved.source} do not fit its settings, which must be those that "
            f"the weights were trained with: {problems}"
        ) from error
    if saved.shadow is not None:
        parameters: list[Tensor] = list(model.parameters())
        check_shapes(saved.shadow, parameters, f"the EMA in {saved.source}")
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved.shadow)


def write(
    directory: str | Path, config: SEDDConfig, weights: Mapping[str, Tensor], kind: str = "sedd"
) -> None:
    """Write config.json and model.safetensors; each file appears whole or not at all."""
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a directory to save into")
    directory.mkdir(parents=True, exist_ok=True)
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    text = json.dumps(config_to_original(config, kind), indent=2) + "\n"
    replace_file(directory / SAFETENSORS, lambda file: save_file(on_cpu, file, {"format": "pt"}))
    replace_file(directory / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Write a file by ``write_to(another path)``; under its own name it appears whole."""
    unfinished = path.with_name(path.name + ".tmp")
    write_to(unfinished)
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)
