"""Training settings from the presets `tiny`, `small` and `medium`, YAML files and overrides.

    config = load_config("tiny", overrides=["data.train=book.txt", "optim.lr=1e-3"])
    config = load_config("small", files=["mine.yaml"])

Later wins: defaults (`settings` has the sections), preset, files in order, overrides in order. The
presets are plain YAML (sedd_fast/train/presets) and hold only what differs from the defaults.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from sedd_fast.models.checkpoint import flatten
from sedd_fast.train.run_directory import write_text
from sedd_fast.train.settings import TrainConfig

PRESETS = ("tiny", "small", "medium")


def load_config(
    preset: str | None = None, files: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> TrainConfig:
    """Settings from a preset, YAML files and dotted overrides, in that order.

    Args:
        preset: "tiny", "small", "medium", or None for the dataclass defaults.
        files: YAML files, or run directories' config.yaml.
        overrides: "section.key=value", the value as YAML reads it (a list: "[a.txt,b.txt]").

    Raises:
        ValueError: unknown key (with the close matches), wrong type, bad value, missing file;
            one line.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    first = [Path(__file__).with_name("presets") / f"{preset}.yaml"] if preset else []
    layers = (*map(_read_yaml, [*first, *files]), *map(_parse_override, overrides))
    return config_from_dict(*layers)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write every setting as YAML; `load_config(files=[path])` reads it back."""
    write_text(Path(path), OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def config_from_dict(*layers: Mapping[str, Any]) -> TrainConfig:
    """Settings from nested dictionaries such as `dataclasses.asdict(config)` gives; later wins."""
    known = asdict(TrainConfig())
    for layer in layers:
        for key, value in layer.items():
            if isinstance(known.get(key), dict) and not isinstance(value, Mapping):
                raise ValueError(f"{key}: expected settings under it, as in {key}.KEY=VALUE")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), *layers)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        unknown = str(error.full_key)
        raise ValueError(f"unknown setting {unknown!r}; {_suggest(unknown, known)}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{error.full_key or 'settings'}: {reason}") from error


def _read_yaml(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"config: no file {str(path)!r}; presets are {', '.join(PRESETS)}")
    settings = _parse(OmegaConf.load, path, f"config: {path} is not valid YAML")
    if not isinstance(settings, dict):
        raise ValueError(f"config: {path} holds no settings; expected lines such as 'optim:'")
    return settings


def _parse_override(text: str) -> Any:
    if "=" not in text or text.startswith("="):
        raise ValueError(f"override: expected section.key=value, got {text!r}")
    return _parse(OmegaConf.from_dotlist, [text], f"override: cannot read {text!r} as YAML")


def _parse(read: Callable[[Any], Any], source: Any, problem: str) -> Any:
    """The settings that `read(source)` returns; ValueError in one line for wrong YAML."""
    try:
        return OmegaConf.to_container(read(source))
    except YAMLError as error:
        raise ValueError(f"{problem}: {' '.join(str(error).split())}") from error


def _suggest(unknown: str, known: Mapping[str, Any]) -> str:
    """The settings that an unknown key may have meant, or those of its section."""
    section, _, name = unknown.rpartition(".")
    every = [key for key, _ in flatten(known)]
    close = difflib.get_close_matches(unknown, every, n=3, cutoff=0.8)
    close += [key for key in every if key.rpartition(".")[2] == name and key not in close]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"{section or 'the top level'} has {', '.join(known[section] if section else known)}"
