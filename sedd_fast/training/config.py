"""Training settings from the presets `tiny`, `small` and `medium`, YAML files and overrides.

    config = load_config("tiny", overrides=["data.train=book.txt", "optim.lr=1e-3"])
    config = load_config("small", files=["mine.yaml"])

Later wins: defaults (`settings` has the sections), preset, files in order, overrides in order. The
presets are plain YAML (sedd_fast/training/presets) and hold only what differs from the defaults.
"""

import difflib
import reprlib
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, asdict, fields, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from sedd_fast.files.documents import parse_yaml, read_yaml
from sedd_fast.files.writing import write_text
from sedd_fast.names import PRESETS, Preset
from sedd_fast.training.setting_text import text_value
from sedd_fast.training.settings import ObjectiveSection, TrainConfig, expected, kinds

#: Settings to change: "section.key=value" texts, or "section.key" -> value.
Overrides = Sequence[str] | Mapping[str, Any]


def load_config(
    preset: Preset | None = None, files: Sequence[str | Path] = (), overrides: Overrides = ()
) -> TrainConfig:
    """Settings from a preset, YAML files and dotted overrides, in that order.

    Args:
        preset: "tiny", "small", "medium", or None for the dataclass defaults.
        files: YAML files, or run directories' config.yaml.
        overrides: "section.key=value". Where the setting is text, the value is taken literally:
            `data.train=my #1 book.txt`. Its other forms are "[a.txt,b.txt]" (a list), "'[a].txt'"
            (text that looks like another form) and "null". Numbers are those of Python: 010 is 10.
            Elsewhere YAML reads the value. In a YAML file text needs the quotes that YAML asks for,
            but `no` or `1984` stay text. Or a mapping: "section.key" -> value, or a section's name
            -> the values of its keys.

    Raises:
        ValueError: unknown key (with the close matches), wrong type, bad value, missing file;
            one line.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    first = [Path(__file__).with_name("presets") / f"{preset}.yaml"] if preset else []
    return config_from_dict(*map(_read_file, [*first, *files]), *_layers(overrides))


def changed(config: TrainConfig, *overrides: Overrides) -> TrainConfig:
    """The settings with some changed, as in `load_config`; later wins.

    Example:
        >>> changed(load_config("tiny"), {"optim.lr": 1e-3, "model": {"length": 256}})
    """
    return config_from_dict(asdict(config), *chain.from_iterable(map(_layers, overrides)))


def baseline_config(config: TrainConfig, run_dir: Path) -> TrainConfig:
    """The settings of the autoregressive baseline that is trained as `config` is.

    It starts from random weights. For a run that started from others (`model.init`) it takes the
    tokenizer of the run. ValueError for a run on prompts and completions.
    """
    data = config.data
    if data.format == "prompt_completion":
        raise ValueError(
            f"{config.run_dir}: the run was trained on prompts and completions, and an "
            "autoregressive baseline is trained on text alone; name a run on text"
        )
    if config.model.init is not None and config.run_dir is not None:
        data = replace(data, tokenizer=str(Path(config.run_dir) / "tokenizer"))
    model = replace(config.model, kind="ar", init=None)
    run = str(run_dir)
    return replace(config, model=model, data=data, objective=ObjectiveSection(), run_dir=run)


def check_unchanged(config: TrainConfig, saved: TrainConfig) -> None:
    """ValueError where a setting differs that a resumed run keeps, `saved` being those it had."""
    # The objective first: a changed objective changes the kind of network that it needs.
    for section in ("objective", "model", "graph", "noise", "optim", "data"):
        now, before = (asdict(getattr(c, section)) for c in (config, saved))
        if section == "model":
            now["kind"], before["kind"] = config.network_kind, saved.network_kind
        elif section == "objective":
            now["type"], before["type"] = config.objective_type, saved.objective_type
        elif section == "optim":
            before = {"type": before["type"]}
        elif section == "data":
            before = {key: before[key] for key in ("format", "packing", "completion_length")}
        for key, value in before.items():
            if now[key] != value and key != "dropout":
                raise ValueError(
                    f"{section}.{key}: the run was trained with {value}, got {now[key]}; a resumed "
                    "run keeps its model, its objective, the kinds of its data and its optimiser: "
                    "start a new one with another run_dir"
                )


def load_run_config(path: str | Path, overrides: Overrides = ()) -> TrainConfig:
    """The settings of a run from its config.yaml, changed by overrides.

    A setting that the file lacks has the value that all runs had before there was the setting.
    """
    older = {"data": {"held_out_at": "end"}}
    return config_from_dict(older, _read_file(path), *_layers(overrides))


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write every setting as YAML; `load_config(files=[path])` reads it back."""
    settings = asdict(config)
    for readable in (True, False):  # False escapes all but ASCII: YAML would change some of it
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=readable, width=10_000)
        if parse_yaml(text, _is_text) == settings:
            break
    write_text(Path(path), text)


def config_from_dict(*layers: Mapping[str, Any]) -> TrainConfig:
    """Settings from nested dictionaries such as `dataclasses.asdict(config)` gives; later wins."""
    merged: dict[str, Any] = {}
    for layer in layers:
        if not isinstance(layer, Mapping):
            raise ValueError(f"settings: expected a mapping, got {type(layer).__name__}")
        for name, value in layer.items():
            if name not in _SECTIONS:
                merged[name] = _typed(_setting(name), value)
            elif isinstance(value, Mapping):
                own = {key: _typed(_setting(_dotted(name, key)), v) for key, v in value.items()}
                merged[name] = merged.get(name, {}) | own
            else:
                raise ValueError(f"{name}: expected settings under it, as in {name}.KEY=VALUE")
    made = {name: cls(**merged.get(name, {})) for name, cls in _SECTIONS.items()}
    return TrainConfig(**(merged | made))


#: Sections and their classes, and every setting with its field, by dotted name.
_SECTIONS: dict[str, Any] = {f.name: f.type for f in fields(TrainConfig) if is_dataclass(f.type)}
_SETTINGS: dict[str, Field[Any]] = {
    **{f.name: f for f in fields(TrainConfig) if f.name not in _SECTIONS},
    **{f"{name}.{f.name}": f for name, cls in _SECTIONS.items() for f in fields(cls)},
}


def _dotted(section: str, key: Any) -> str:
    return f"{section}.{key if isinstance(key, str) else reprlib.repr(key)}"


def _setting(name: Any) -> tuple[str, Field[Any]]:
    """A setting's dotted name and its field; ValueError where there is none of that name."""
    if name not in _SETTINGS:
        known = _suggest(name if isinstance(name, str) else "")
        shown = f"{name!r:.80}" if isinstance(name, str) else reprlib.repr(name)
        raise ValueError(f"unknown setting {shown}; {known}")
    return name, _SETTINGS[name]


def _typed(setting: tuple[str, Field[Any]], value: Any) -> Any:
    """The value as its field's type; ValueError where that is not possible."""
    name, declared = setting
    if value is None and types.NoneType in kinds(declared):
        return None
    for kind in kinds(declared):
        with suppress(ValueError, OverflowError):
            if kind in (int, float) and type(value) in (int, str, kind):
                return kind(value)
            if kind is bool and (type(value) is bool or value in (0, 1)):
                return bool(value)
            if kind is str and isinstance(value, str):
                return value
            if kind == list[str] and isinstance(value, (list, tuple)):
                return [*value]
    raise ValueError(expected(name, declared, value))


def _is_text(keys: tuple[str, ...]) -> bool:
    name = ".".join(keys)
    return name in _SETTINGS and str in kinds(_SETTINGS[name])


def _is_literal(keys: tuple[str, ...]) -> bool:
    """Whether a setting takes text or numbers: YAML 1.1 reads 010 as 8 and 1:30 as 90."""
    name = ".".join(keys)
    return name in _SETTINGS and any(kind in (str, int, float) for kind in kinds(_SETTINGS[name]))


def _read_file(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"config: no file {str(path)!r}; presets are {', '.join(PRESETS)}")
    try:
        settings = read_yaml(Path(path), _is_literal)
    except ValueError as error:
        raise ValueError(f"config: {path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"config: {path} holds no settings; expected lines such as 'optim:'")
    return settings


def _layers(overrides: Overrides) -> list[Any]:
    if isinstance(overrides, Mapping):
        return [_nested(name, value) for name, value in overrides.items()]
    return [_parse_override(text) for text in overrides]


def _parse_override(text: str) -> Any:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"override: expected section.key=value, got {text!r}")
    keys = tuple(name.split("."))
    parsed: Any
    try:
        if _is_text(keys):
            parsed = text_value(value, lists=list[str] in kinds(_SETTINGS[name]))
        else:
            parsed = parse_yaml(value, lambda below: _is_literal((*keys, *below)))
    except ValueError as error:
        raise ValueError(f"override: cannot read {text!r} as YAML: {error}") from error
    return _nested(name, parsed)


def _nested(name: str, value: Any) -> Any:
    """{"optim": {"lr": value}} for the name "optim.lr"."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _suggest(unknown: str) -> str:
    """The settings that an unknown key may have meant, or those of its section."""
    section, _, name = unknown.rpartition(".")
    close = difflib.get_close_matches(unknown, _SETTINGS, n=3, cutoff=0.8)
    close += [key for key in _SETTINGS if key.rpartition(".")[2] == name and key not in close]
    if close:
        return f"did you mean {' or '.join(close)}?"
    known = fields(_SECTIONS.get(section, TrainConfig))
    return f"{section or 'the top level'} has {', '.join(f.name for f in known)}"
