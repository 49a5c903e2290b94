"""Reading and writing networks: the published format, and the original trainer's directories.

    config.json + model.safetensors (or pytorch_model.bin)     on the Hub or in a directory
    export/ with these                                          a run directory of sedd_fast
    .hydra/config.yaml + checkpoints-meta/checkpoint.pth       of the original; EMA weights are used

The settings are the original's, flat or nested under "config"; `model.type` says which network it
is, "ddit" for SEDD, "posterior" for PosteriorSEDD, "ar" for the autoregressive baseline.
Everything is strict: a weight missing or left over is an error. Files are verified
(`sedd_fast.files`): pickles by the CRC-32 of their records, what `write` wrote by `model.sha256`,
the list of SHA-256 sums beside it. Settings are compared with the names and shapes of the weights
before a network is made, so that small files cannot ask for more memory than they hold weights.
"""

import contextlib
import json
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sedd_fast.files import checksums, hub
from sedd_fast.files.documents import read_json
from sedd_fast.files.paths import expanded
from sedd_fast.files.pickles import check_weights, load_pickle
from sedd_fast.files.writing import write_files
from sedd_fast.models.config import SEDDConfig
from sedd_fast.models.ema import check_shapes

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
EXPORT = "export"  # the folder of a run directory of this package that holds them
_MOST_RUNS = 5  # that an error names
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
_SECTIONS = ("tokens", "graph", "noise", "model")
_GRAPHS = {"absorb": "absorbing", "uniform": "uniform"}

#: More blocks than the weights have are refused at once; fewer are compared name by name.
_MANY_BLOCKS = 1000

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
    settings = _inner(settings)
    flat = {"tokens": settings["tokens"]} if "tokens" in settings else {}
    for section in _SECTIONS[1:]:
        flat |= {f"{section}.{key}": value for key, value in _section(settings, section).items()}
    missing = [key for key, (_, optional) in _KEYS.items() if not optional and key not in flat]
    if missing:
        raise ValueError(f"the settings lack {', '.join(missing)}: not those of a SEDD network")
    known = {*_KEYS, "model.name", "model.type"}
    if unknown := [key for key in flat if key.startswith("model.") and key not in known]:
        names = reprlib.repr(unknown)
        warnings.warn(f"settings of the network that are not known here: {names}", stacklevel=2)
    kind_of(settings)
    values = {field: flat[key] for key, (field, _) in _KEYS.items() if key in flat}
    if isinstance(values["graph"], str):
        values["graph"] = _GRAPHS.get(values["graph"], values["graph"])
    return values


def _inner(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings themselves, flat or under "config"."""
    inner = settings.get("config", settings)
    return inner if isinstance(inner, Mapping) else {}


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name, {})
    if not isinstance(section, Mapping):
        got = type(section).__name__
        raise ValueError(f"{name} must hold settings by name, as in {name}.type, got {got}")
    return section


def kind_of(settings: Mapping[str, Any]) -> str:
    """ "sedd", "posterior" or "ar", as model.type says; ValueError for another type."""
    name = _section(_inner(settings), "model").get("type", "ddit")
    for kind, (known, _) in _KINDS.items():
        if name == known:
            return kind
    known = ", ".join(known for known, _ in _KINDS.values())
    raise ValueError(f"model.type must be one of {known}, got {reprlib.repr(name)}")


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


def read(name_or_dir: str | Path, kind: str | None = "sedd", **options: Any) -> Checkpoint:
    """Read a directory or a Hub repository; see `SEDD.from_pretrained`.

    Raises ValueError where the network is not of the kind asked for (None: any).
    """
    found = _read(name_or_dir, **options)
    if kind is not None and found.kind != kind:
        (_, holds), (_, wanted) = _KINDS[found.kind], _KINDS[kind]
        raise ValueError(
            f"{found.source} holds the network {holds}, not {wanted}; read it with "
            f"{holds}.from_pretrained, or with sedd_fast.models.networks.load"
        )
    return found


def _read(name_or_dir: str | Path, **options: Any) -> Checkpoint:
    path = expanded(name_or_dir)
    if path.is_dir():
        for folder in (path, path / EXPORT):
            if (folder / CONFIG).is_file():
                return _read_files(folder / CONFIG, _weights_in(folder), str(folder))
        return _read_run(path)
    if path.exists():
        raise ValueError(f"{path} is a file; give the directory that holds it and {CONFIG}")
    hub.check_model(name_or_dir)
    return _read_files(*_download(str(name_or_dir), **options), str(name_or_dir))


def _weights_in(directory: Path) -> Path:
    for name in (SAFETENSORS, PICKLE):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds {CONFIG} but neither {SAFETENSORS} nor {PICKLE}")


def _read_files(config: Path, weights: Path, source: str) -> Checkpoint:
    checksums.verify(config.parent, checksums.MODEL, CONFIG, weights.name)
    settings = read_json(config)
    with _named(config):
        fields, kind = config_from_original(settings), kind_of(settings)
    state = _load_safetensors(weights) if weights.name == SAFETENSORS else _load_pickle(weights)
    check_weights(state.items(), weights)
    return Checkpoint(source, fields, state, kind=kind)


def _read_run(directory: Path) -> Checkpoint:
    missing = [name for name in (RUN_CONFIG, RUN_STATE) if not (directory / name).is_file()]
    if missing:
        if inside := sorted(str(path.parent) for path in directory.glob(f"[!.]*/{EXPORT}")):
            names = ", ".join(inside[:_MOST_RUNS]) + ", ..." * (len(inside) > _MOST_RUNS)
            raise FileNotFoundError(f"{directory} holds runs and is none itself; name one: {names}")
        raise FileNotFoundError(
            f"{directory} holds no {CONFIG}, and as a run directory of the original trainer it "
            f"lacks {' and '.join(missing)}"
        )
    config, path = directory / RUN_CONFIG, directory / RUN_STATE
    with _named(config):
        fields = config_from_original(_run_settings(config))
    state = _load_pickle(path)
    absent = [name for name in ("model", "ema") if not isinstance(state.get(name), dict)]
    if absent or not isinstance(state["ema"].get("shadow_params"), list):
        raise ValueError(f"{path} lacks {' and '.join(absent) or 'ema.shadow_params'}")
    weights, shadow = state["model"], state["ema"]["shadow_params"]
    check_weights(weights.items(), path)
    check_weights(((f"ema.shadow_params[{i}]", value) for i, value in enumerate(shadow)), path)
    return Checkpoint(str(directory), fields, weights, shadow)


def _run_settings(path: Path) -> dict[str, Any]:
    """The sections of the original's settings that describe the network, references resolved."""
    from omegaconf import OmegaConf

    from sedd_fast.files.documents import read_yaml

    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError("it must hold a mapping of settings")
    try:
        whole = OmegaConf.create(settings)
        found = {name: whole[name] for name in _SECTIONS if name in whole}
        return {
            name: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
            for name, part in found.items()
        }
    except Exception as error:  # resolving a reference can raise nearly anything
        raise ValueError(f"cannot be resolved: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the name of the file before the text of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # a wrong header: SafetensorError, or what torch makes of a dtype
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or not a safetensors file: {reason}") from error


def _load_pickle(path: Path) -> dict[str, Any]:
    """Memory-mapped: optimiser moments are verified, but take no memory."""
    return load_pickle(path, mmap=True, legacy=True)


def _download(name: str, **options: Any) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError

    try:
        with hub.access(name, options.get("endpoint")):
            config = hf_hub_download(name, CONFIG, **options)
            try:
                weights = hf_hub_download(name, SAFETENSORS, **options)
            except EntryNotFoundError:
                weights = hf_hub_download(name, PICKLE, **options)
            with contextlib.suppress(EntryNotFoundError):  # published checkpoints have none
                hf_hub_download(name, checksums.MODEL, **options)
    except OSError as error:  # every error of the Hub and of the network is one
        raise FileNotFoundError(
            f"no directory {name!r} here{hub.near(name, folders=True)}, and no SEDD network of "
            "that name could be had from the Hugging Face Hub "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); check the name, the "
            "connection, and `hf auth login` for a private repository"
        ) from error
    return Path(config), Path(weights)


Network = TypeVar("Network", bound=nn.Module)


def build(saved: Checkpoint, make: Callable[[SEDDConfig], Network]) -> Network:
    """The network `make(config)` with the weights of a checkpoint.

    ValueError as of `check`, before any memory is taken.
    """
    model = make(check(saved, make))
    restore(model, saved)
    return model


def check(saved: Checkpoint, make: Callable[[SEDDConfig], nn.Module]) -> SEDDConfig:
    """The settings of a checkpoint; ValueError unless they are a SEDDConfig that fits the weights.

    The network is made without memory for this: settings that ask for another size than that of
    the weights allocate nothing.
    """
    with _named(Path(saved.source)):
        config = SEDDConfig(**saved.config)
    blocks = {name.split(".")[1] for name in saved.weights if name.startswith("blocks.")}
    if config.n_blocks > max(_MANY_BLOCKS, len(blocks)):  # making them would take minutes
        raise ValueError(
            f"the settings of {saved.source} ask for {config.n_blocks} blocks, but its weights are "
            f"those of {len(blocks)}; take the settings that they were trained with"
        )
    with torch.device("meta"):
        check_fit(make(config), saved)
    return config


def check_fit(model: nn.Module, saved: Checkpoint) -> None:
    """ValueError unless the weights have the names and shapes of the network's."""
    if problems := _misfits(model.state_dict(), saved.weights, "file"):
        raise ValueError(
            f"the weights of {saved.source} do not fit its settings, which must be those that "
            f"the weights were trained with: {problems}"
        )
    if saved.shadow is not None:
        parameters: list[Tensor] = list(model.parameters())
        check_shapes(saved.shadow, parameters, f"the EMA in {saved.source}")


def check_unchanged(like: nn.Module, weights: Mapping[str, Any]) -> None:
    """ValueError unless the weights are plain tensors with the names and shapes of ``like``'s."""
    plain = {n: v for n, v in weights.items() if type(v) in (Tensor, nn.Parameter)}
    other = [f"{n} ({type(v).__name__})" for n, v in weights.items() if n not in plain]
    problems = f"not plain tensors: {_first(other)}" if other else ""
    if problems := problems or _misfits(like.state_dict(), plain, "network", "settings"):
        raise ValueError(
            "a network can only be saved with the weights that its settings ask for, whole and not "
            f"quantised: {problems}; gather sharded weights (torch.distributed.checkpoint."
            "state_dict.get_model_state_dict, full_state_dict=True), merge adapters and remove "
            "parametrisations, load the result into a new network of the same config, and save "
            "that; a quantised network is saved before it is quantised"
        )


def _misfits(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], at: str, of: str = "network"
) -> str:
    """In what names and shapes differ; as JSON, since names may hold escapes of a terminal."""
    missing = [json.dumps(name) for name in expected if name not in found]
    unknown = [json.dumps(name) for name in found if name not in expected]
    differ = [
        f"{name} ({[*found[name].shape]} in the {at}, {[*value.shape]} in the {of})"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    listed = {"Missing keys:": missing, "Unexpected keys:": unknown, "size mismatch for": differ}
    return "; ".join(f"{what} {_first(names)}" for what, names in listed.items() if names)


def _first(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:200] for name in names[:most]) + more


def restore(model: nn.Module, saved: Checkpoint) -> None:
    """Load the weights, then the EMA weights over the parameters where the checkpoint has them.

    Raises:
        ValueError: they do not fit; the network is then unchanged.
    """
    check_fit(model, saved)
    model.load_state_dict(saved.weights)
    if saved.shadow is not None:
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), saved.shadow)


def write(
    directory: str | Path, config: SEDDConfig, weights: Mapping[str, Tensor], kind: str = "sedd"
) -> None:
    """Write config.json and model.safetensors, and the list of their sums, model.sha256."""
    directory = expanded(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; give a directory to save into")
    text = json.dumps(config_to_original(config, kind), indent=2) + "\n"

    def fill(folder: Path) -> None:
        save_file(_separate(weights), folder / SAFETENSORS, {"format": "pt"})
        (folder / CONFIG).write_text(text, encoding="utf-8")

    write_files(directory, checksums.MODEL, fill)


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous on the CPU, none in the memory of another: safetensors has no tied weights."""
    used: set[int] = set()
    separate = {}
    for name, value in weights.items():
        on_cpu = value.detach().cpu().contiguous()
        if (start := on_cpu.untyped_storage().data_ptr()) in used:
            on_cpu = on_cpu.clone()
        used.add(start)
        separate[name] = on_cpu
    return separate
