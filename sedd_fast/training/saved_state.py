"""Checks of a saved state before any of it is used: types, ranges, shapes and layouts.

A run directory may come from a stranger, and an optimiser's fused step trusts the shapes of its
state. Every function raises ValueError that says what is wrong; `blamed_on` adds the file and the
remedy.
"""

import math
import random
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MOMENTUM = "momentum_buffer"  # of Muon
_ESTIMATE, _OPTIONAL = "nats_per_token", ("stderr", "bits_per_token", "bits_per_char")
_WORDS, _WORD = 624, 2**32  # of numpy's Mersenne twister


@contextmanager
def blamed_on(file: Path) -> Iterator[None]:
    """Within the context a ValueError, or any error of a malformed value, names `file`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"checkpoint: {file} does not hold a state of this run ({reason}); remove "
            f"{file.parent} to resume from the checkpoint before it"
        ) from error


def entry(
    state: Any, name: Any, accepts: Callable[[Any], bool], expected: str, within: str = ""
) -> Any:
    """The entry `name` of a mapping; ValueError unless it is there and accepted."""
    if not isinstance(state, Mapping):
        raise ValueError(f"{within or 'state'}: expected a mapping, got {_shown(state)}")
    full = f"{within}.{name}" if within else str(name)
    if name not in state:
        raise ValueError(f"{full} is missing")
    if not accepts(state[name]):
        raise ValueError(f"{full}: expected {expected}, got {_shown(state[name])}")
    return state[name]


def count(state: Any, name: str, within: str = "") -> int:
    """A whole number that is at least 0."""
    return entry(state, name, _is_count, "a whole number of at least 0", within)


def number(state: Any, name: str, within: str = "") -> float:
    """A finite number that is at least 0."""
    return entry(
        state, name, lambda v: _is_finite(v) and v >= 0, "a finite number of at least 0", within
    )


def mapping(state: Any, name: Any, within: str = "") -> dict[str, Any]:
    """A mapping whose keys are texts."""

    def accepts(value: Any) -> bool:
        return isinstance(value, Mapping) and all(type(key) is str for key in value)

    return dict(entry(state, name, accepts, "a mapping with texts as keys", within))


def progress(saved: Any, step: int) -> tuple[int, float]:
    """(step, elapsed seconds) of the checkpoint in the directory of that step."""
    if count(saved, "step") != step:
        raise ValueError(f"step: expected {step}, as the directory says, got {saved['step']}")
    return step, number(saved, "elapsed")


def window(saved: Any) -> list[float]:
    """Sum and number of the losses since the last metrics line."""

    def accepts(value: Any) -> bool:
        is_pair = type(value) in (list, tuple) and len(value) == 2
        return is_pair and _is_finite(value[0]) and _is_count(value[1])

    return list(entry(saved, "window", accepts, "the sum and the number of losses"))


def held_out(saved: Any) -> dict[str, Any] | None:
    """The fields of the last held-out estimate, or None."""
    if entry(saved, "held_out", _is_mapping_or_none, "an estimate or None") is None:
        return None
    found = mapping(saved, "held_out")
    if unknown := found.keys() - {"step", _ESTIMATE, *_OPTIONAL}:
        raise ValueError(f"held_out: unknown entries {reprlib.repr(sorted(unknown))}")
    count(found, "step", "held_out")
    entry(found, _ESTIMATE, lambda v: type(v) is float, "a number", "held_out")
    for name in _OPTIONAL:
        entry(found, name, lambda v: v is None or type(v) is float, "a number or None", "held_out")
    return found


def position(saved: Any, vocab_size: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """The place in the training text, of blocks, examples or a stream, with the keys of `like`."""
    found = mapping(saved, "data")
    if found.keys() != like.keys():
        raise ValueError(f"data: expected {', '.join(like)}, got {reprlib.repr(sorted(found))}")
    for name in found.keys() - {"pending"}:
        count(found, name, "data")
    if "pending" not in found:
        return found

    def accepts(tokens: Any) -> bool:
        return type(tokens) is list and all(_is_count(t) and t < vocab_size for t in tokens)

    entry(found, "pending", accepts, f"tokens below {vocab_size}", "data")
    return found


def weights(saved: Any, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state by the names of `like`, whose tensors give shapes and dtypes.

    The prefixes that torch.compile and DDP put before names are left out.
    """
    named = mapping(saved, "model").items()
    found = {name.replace("_orig_mod.", ""): value for name, value in named}
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    if unlike := sorted(found.keys() ^ like.keys()):
        names = ", ".join(unlike[:3]) + (", ..." if len(unlike) > 3 else "")
        raise ValueError(f"model: missing, or not of this network: {names}")
    return {name: tensor(found[name], like[name], f"model.{name}") for name in like}


def average(saved: Any, like: Sequence[Tensor]) -> dict[str, Any]:
    """The state of the moving average with the shapes of `like`."""
    ema = mapping(saved, "ema")
    entry(ema, "decay", lambda v: _is_finite(v) and 0 <= v <= 1, "a number from 0 to 1", "ema")
    count(ema, "num_updates", "ema")
    shadow = entry(
        ema, "shadow_params", lambda v: type(v) is list and len(v) == len(like),
        f"{len(like)} tensors", "ema",
    )  # fmt: skip
    checked = [tensor(s, p, f"ema.{i}") for i, (s, p) in enumerate(zip(shadow, like, strict=True))]
    return {**ema, "shadow_params": checked}


def moments(
    saved: Any, name: str, like: Sequence[Tensor], step: int
) -> dict[int, dict[str, Tensor]]:
    """The state of an optimiser by the number of the parameter, in memory of its own.

    Args:
        saved: the state of the run.
        name: of the optimiser: "optimizer" (AdamW) or "muon".
        like: the parameters, in the optimiser's order.
        step: steps of the run: no parameter has had more.
    """
    optimizer = mapping(saved, name)
    numbers = list(range(len(like)))

    def is_our_group(groups: Any) -> bool:
        one = type(groups) is list and len(groups) == 1 and isinstance(groups[0], Mapping)
        return one and groups[0].get("params") == numbers

    entry(optimizer, "param_groups", is_our_group, f"one group of {len(like)}", name)
    # Until the first step that a loss scaler does not skip, AdamW has no state.
    if step == 0 or (saved.get("scaler") and not optimizer.get("state")):
        numbers = []
    states = entry(
        optimizer, "state", lambda v: isinstance(v, Mapping) and set(v) == set(numbers),
        f"the states of {len(numbers)} parameters", name,
    )  # fmt: skip
    found = {}
    for number, p in zip(numbers, like, strict=False):
        where = f"{name}.state.{number}"
        if name == "muon":
            momentum = mapping(states, number, f"{name}.state").get(_MOMENTUM)
            found[number] = {_MOMENTUM: tensor(momentum, p, f"{where}.{_MOMENTUM}")}
        else:
            found[number] = _moments_of(states[number], p, step, where, _MOMENTS)
    return found


def _moments_of(
    own: Any, like: Tensor, step: float, where: str, names: tuple[str, ...]
) -> dict[str, Tensor]:
    """The state of one parameter: the number of its steps, up to `step`, and its moments."""
    if not isinstance(own, Mapping) or set(own) != {"step", *names}:
        raise ValueError(f"{where}: expected step, {', '.join(names)}, got {_shown(own)}")
    steps = tensor(own["step"], torch.zeros((), dtype=torch.float32), f"{where}.step")
    if not (1 <= float(steps) <= step and float(steps).is_integer()):
        raise ValueError(f"{where}.step: expected 1 to {step}, got {float(steps):g}")
    found = {name: tensor(own[name], like, f"{where}.{name}") for name in names}
    for name, value in found.items():
        if name.endswith("_sq") and bool((value < 0).any()):
            raise ValueError(f"{where}.{name}: expected squares, got a negative number")
    return {"step": steps, **found}


def adam(saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an Adam or AdamW of any settings, for `optimizer.load_state_dict`.

    Parameters may lack a state; options that `optimizer` does not have are left out.
    """
    given, groups = mapping(saved, "optimizer"), optimizer.state_dict()["param_groups"]

    def accepts(value: Any) -> bool:
        return type(value) is list and len(value) == len(groups)

    entry(given, "param_groups", accepts, f"{len(groups)} groups", "optimizer")
    checked, state = [], {}
    states = entry(given, "state", lambda v: isinstance(v, Mapping), "a mapping", "optimizer")
    for number, (group, own) in enumerate(zip(given["param_groups"], groups, strict=True)):
        where = f"optimizer.param_groups.{number}"
        entry(group, "params", own["params"].__eq__, f"{len(own['params'])} numbers", where)
        checked.append({name: _option(group, name, own[name], where) for name in own})
        names = _MOMENTS + (("max_exp_avg_sq",) if checked[-1]["amsgrad"] else ())
        parameters = optimizer.param_groups[number]["params"]
        for at, p in zip(own["params"], parameters, strict=True):
            if at in states:
                moments = dict(states[at]) if isinstance(states[at], Mapping) else states[at]
                if isinstance(moments, dict) and type(moments.get("step")) in (int, float):
                    moments["step"] = torch.tensor(float(moments["step"]))  # as torch 1.11 wrote
                state[at] = _moments_of(moments, p, math.inf, f"optimizer.state.{at}", names)
    if len(state) != len(states):
        raise ValueError("optimizer.state: it has states of parameters that are not there")
    return {"state": state, "param_groups": checked}


def _option(group: Mapping[str, Any], name: str, own: Any, within: str) -> Any:
    """An option of a group of parameters, of the kind of `own`; `own` where it is not there."""
    if name == "params" or name not in group:
        return own
    if own is None or isinstance(own, bool):
        return entry(group, name, lambda v: v is None or type(v) is bool, "a bool", within)
    if isinstance(own, tuple):

        def is_pair(value: Any) -> bool:
            return type(value) in (list, tuple) and all(map(_is_real, value)) and len(value) == 2

        return tuple(entry(group, name, is_pair, "two finite numbers", within))
    return entry(group, name, _is_real, "a finite number", within)


def _is_real(value: Any) -> bool:
    """Whether a value is a finite number, also one of numpy or in a tensor without dimensions."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_floating_point() and bool(value.isfinite())
    return (isinstance(value, float) and math.isfinite(value)) or _is_whole(value)


def tensor(value: Any, like: Tensor, name: str) -> Tensor:
    """A dense copy of `value`; ValueError unless it is finite and has shape and dtype of `like`."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, got {_shown(value)}")
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu"
    if not plain or value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise ValueError(f"{name}: expected a dense tensor in memory, got {_shown(value)}")
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(
            f"{name}: expected {_described(like)}, got {_described(value)}; the settings, or the "
            "vocabulary, are those of another network"
        )
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite")
    # A copy: the memory of the original may be shared, or hold one number for many.
    return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())


def scaler(saved: Any, current: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of a loss scaler, with the constants of `current`."""
    if entry(saved, "scaler", _is_mapping_or_none, "a scaler or None") is None:
        return None
    found = mapping(saved, "scaler")
    if not found and not current:
        return None
    scale = entry(found, "scale", lambda v: _is_finite(v) and v > 0, "a positive number", "scaler")
    return {**current, "scale": scale, "_growth_tracker": count(found, "_growth_tracker", "scaler")}


def random_states(saved: Any) -> dict[str, Any]:
    """What `run_directory.random_state` returned; the generators check the rest themselves."""
    entry(saved, "torch", lambda v: isinstance(v, Tensor), "a tensor")
    # numpy takes any position, and would read there.
    entry(saved, "numpy", _is_numpy_state, "a state of numpy's MT19937")
    own = entry(saved, "python", lambda v: type(v) is tuple and len(v) == 3, "three values")
    if own[2] is not None and not _is_finite(own[2]):
        raise ValueError(f"python: expected a number or None, got {_shown(own[2])}")
    random.Random().setstate(own)
    torch.Generator().set_state(saved["torch"])
    return saved


def _is_numpy_state(value: Any) -> bool:
    if type(value) not in (list, tuple) or len(value) != 5:
        return False
    name, keys, place, has_normal, normal = value
    if name != "MT19937" or type(keys) is not list or len(keys) != _WORDS:
        return False
    words = all(_is_count(key) and key < _WORD for key in keys)
    rest = _is_count(place) and place <= _WORDS and has_normal in (0, 1) and _is_finite(normal)
    return words and any(keys) and rest


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _is_finite(value: Any) -> bool:
    return math.isfinite(value) if type(value) is float else _is_whole(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_mapping_or_none(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _described(value: Tensor) -> str:
    return f"shape {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.layout).removeprefix('torch.')} tensor, {_described(value)}"
    short = type(value) in (bool, float, type(None)) or _is_finite(value)
    return repr(value) if short else f"a value of type {type(value).__name__}"
