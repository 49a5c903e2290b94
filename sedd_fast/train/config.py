"""Training settings from the presets `tiny`, `small` and `medium`, YAML files and overrides.

    config = load_config("tiny", overrides=["data.train=book.txt", "optim.lr=1e-3"])
    config = load_config("small", files=["mine.yaml"])

Later wins: defaults (`settings` has the sections), preset, files in order, overrides in order. The
presets are plain YAML (sedd_fast/train/presets) and hold only what differs from the defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sedd_fast.train.settings import TrainConfig

PRESETS = ("tiny", "small", "medium")


def load_config(
    preset: str | None = None,
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
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
    layers = [_preset(preset)] if preset else []
    layers += [_read_yaml(path) for path in files]
    layers += [_parse_override(text) for text in overrides]
    return _merge(layers)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write every setting as YAML; `load_config(files=[path])` reads it back."""
    from omegaconf import OmegaConf

    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))), encoding="utf-8")


def override(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """`config` with dotted overrides applied."""
    return _merge([asdict(config), *(_parse_override(text) for text in overrides)])


def config_from_dict(settings: Mapping[str, Any]) -> TrainConfig:
    """Settings from nested dictionaries such as `dataclasses.asdict(config)` gives."""
    return _merge([dict(settings)])


def _merge(layers: Sequence[Any]) -> TrainConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(TrainConfig)
    for layer in layers:
        _check_keys(layer)
        try:
            OmegaConf.set_readonly(merged, False)
            merged = OmegaConf.unsafe_merge(_writable(merged), layer)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{error.full_key or 'settings'}: {reason}") from error
    return _build(OmegaConf.to_container(merged, resolve=True))


def _writable(config: Any) -> Any:
    """Frozen dataclasses make read-only nodes; unlock them for merging."""
    from omegaconf import OmegaConf

    for section in fields(TrainConfig):
        if OmegaConf.is_config(config[section.name]):
            OmegaConf.set_readonly(config[section.name], False)
    return config


def _build(settings: Any) -> TrainConfig:
    kinds = {f.name: f.default_factory for f in fields(TrainConfig) if f.name != "run_dir"}
    sections = {name: kind(**settings[name]) for name, kind in kinds.items()}  # type: ignore
    return TrainConfig(run_dir=settings["run_dir"], **sections)


def _preset(name: str) -> Any:
    from omegaconf import OmegaConf

    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    text = (resources.files("sedd_fast") / "train" / "presets" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )
    return OmegaConf.to_container(OmegaConf.create(text))


def _read_yaml(path: str | Path) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if not Path(path).is_file():
        raise ValueError(f"config: no file {str(path)!r}; presets are {', '.join(PRESETS)}")
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ValueError(
            f"config: {path} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"config: {path} holds no settings; expected lines such as 'optim:'")
    return settings


def _parse_override(text: str) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    if "=" not in text or text.startswith("="):
        raise ValueError(f"override: expected section.key=value, got {text!r}")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]))
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"override: cannot read {text!r} as YAML: {reason}") from error


def _check_keys(settings: Mapping[str, Any], kind: Any = TrainConfig, prefix: str = "") -> None:
    known = {f.name: f for f in fields(kind)}
    for key, value in settings.items():
        full = f"{prefix}{key}"
        if key not in known:
            raise ValueError(f"unknown setting {full!r}; {_suggest(full, prefix, known)}")
        section = known[key].default_factory
        if is_dataclass(section):
            if not isinstance(value, Mapping):
                raise ValueError(f"{full}: expected settings under it, as in {full}.KEY=VALUE")
            _check_keys(value, section, f"{full}.")


def _suggest(full: str, prefix: str, known: Mapping[str, Any]) -> str:
    every = list(_all_keys())
    close = difflib.get_close_matches(full, every, n=3, cutoff=0.8)
    tail = full.rsplit(".", 1)[-1]
    close += [key for key in every if key.rsplit(".", 1)[-1] == tail and key not in close]
    if close:
        return f"did you mean {' or '.join(close)}?"
    where = prefix.rstrip(".") or "the top level"
    return f"{where} has {', '.join(known)}"


def _all_keys(kind: Any = TrainConfig, prefix: str = "") -> Iterator[str]:
    for f in fields(kind):
        if is_dataclass(f.default_factory):
            yield from _all_keys(f.default_factory, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name
