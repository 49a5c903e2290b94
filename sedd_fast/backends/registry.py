"""Which implementation an operation uses.

The table is (operation, backend) -> function: a backend is a module of ``sedd_fast.backends`` that
has a function of the operation's name, ``unavailable()``, which says why it cannot run here, and,
where its kernels have limits, ``unsupported(op, like)``, which says which of them is exceeded.

An explicit request (``use_backend``, SEDD_FAST_BACKEND) never falls back: it raises with the
reason. The automatic choice takes the backend that was measured fastest (``choices``), else the
first of its list that runs, and says once when the first one cannot. The choice is made when the
operation runs, not when it is traced.
"""

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sedd_fast.backends import choices
from sedd_fast.names import BACKENDS, BackendName

#: Backends of each kind of device, the preferred first; for GPUs ``choices`` may know better.
PREFERENCE: dict[str, tuple[BackendName, ...]] = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}


class BackendCode(int):
    """Which backend ran a forward call: its position in ``names.BACKENDS``.

    The backward gets it as a 0-dim int8 CPU tensor: autograd's threads do not see context
    variables, and a string cannot be an output of an operation.
    """

    def tensor(self) -> Tensor:
        """The code as that tensor."""
        return torch.full((), int(self), dtype=torch.int8, device="cpu")


class Backend(NamedTuple):
    """A backend, and its ``unsupported`` where it has one."""

    name: str
    module: ModuleType
    code: BackendCode
    limits: Callable[[str, Tensor], str | None] | None


_requested: ContextVar[str | None] = ContextVar("sedd_fast_backend", default=None)


def preference(device_type: str) -> tuple[str, ...]:
    """The backends tried on a kind of device, in order."""
    return PREFERENCE.get(device_type, ("reference",))


@functools.cache
def module(backend: str) -> ModuleType:
    """The module of a backend, imported when first asked for."""
    return importlib.import_module(f"sedd_fast.backends.{backend}")


def unavailable(backend: str, device_type: str = "cpu") -> str | None:
    """Why a backend cannot run on that kind of device, or None."""
    runs_on = module(backend).devices()
    if runs_on is not None and device_type not in runs_on:
        return f"it does not run on {device_type} tensors"
    return module(backend).unavailable()


def unsupported(backend: str, op: str, dtype: torch.dtype) -> str | None:
    """Why a backend that runs there has no such operation for tensors of that dtype, or None."""
    if not hasattr(module(backend), op):
        return f"it has no {op}"
    if dtype.is_floating_point and dtype not in module(backend).DTYPES:
        return f"its {op} has no {dtype} form"
    return None


def beyond(backend: str, op: str, like: Tensor) -> str | None:
    """Which limit of a backend's kernels such a tensor exceeds, or None."""
    limits = _named(backend).limits
    return None if limits is None else limits(op, like)


def check_name(backend: str, origin: str) -> str:
    """The name itself; a ValueError when it is none of BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"{origin}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


@contextlib.contextmanager
def use_backend(backend: BackendName) -> Iterator[None]:
    """Run every operation inside the block on one backend: "reference", "cpp", "triton"
    or "cuda".

    Example:
        >>> with sedd_fast.use_backend("reference"):
        ...     loss = sedd_fast.score_entropy(log_score, sigma, x_t, x_0, graph)

    Raises:
        ValueError: no such backend.
        RuntimeError: at the operation, when that backend cannot run there.
    """
    token = _requested.set(check_name(backend, "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


def requested() -> str | None:
    """The explicit request in force: the innermost use_backend, else SEDD_FAST_BACKEND."""
    name = _requested.get()
    if name is None and (env := os.environ.get("SEDD_FAST_BACKEND")):
        name = check_name(env, "SEDD_FAST_BACKEND")
    return name


def choose(
    device_type: str,
    unsupported: Callable[[str], str | None] = lambda backend: None,
    fastest: str | None = None,
) -> str:
    """The backend in force on that kind of device.

    Args:
        device_type: "cpu", "cuda".
        unsupported: why a backend that runs there cannot do what is wanted, or None.
        fastest: the backend measured fastest for what is wanted, tried first.

    Raises:
        RuntimeError: the backend asked for cannot.
    """

    def reason(backend: str) -> str | None:
        return unavailable(backend, device_type) or unsupported(backend)

    name = requested()
    if name is None:
        _warn_of_fallback(device_type)
        order = (*([fastest] if fastest else []), *preference(device_type))
        return next(b for b in order if reason(b) is None)
    if why := reason(name):
        usable = [b for b in preference(device_type) if reason(b) is None]
        raise RuntimeError(
            f"backend {name!r} was asked for, but {why}; usable here: {', '.join(usable)}"
        )
    return name


@functools.cache
def _warn_of_fallback(device_type: str) -> None:
    """Say, once, when the first backend of a kind of device cannot run there."""
    first, *others = preference(device_type)
    if others and (reason := unavailable(first, device_type)):
        chosen = next(b for b in others if unavailable(b, device_type) is None)
        _warn("", chosen, f"{first!r} is not available ({reason})")


def _warn(op: str, chosen: str, reason: str) -> None:
    slower = "slower " * (chosen == "reference")
    message = f"sedd_fast runs {op}on the {slower}{chosen!r} backend: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)


#: (operation, first backend, chosen one) of which it has been said that a limit is why.
_warned_of_limits: set[tuple[str, str, str]] = set()


def _within_limits(first: str, op: str, like: Tensor, fastest: str | None) -> str:
    """The backend for a tensor that is too large for the ``first`` choice; says so, once.

    Raises:
        RuntimeError: it was asked for.
    """

    def unfit(backend: str) -> str | None:
        return unsupported(backend, op, like.dtype) or beyond(backend, op, like)

    chosen = choose(like.device.type, unfit, fastest)
    if (key := (op, first, chosen)) not in _warned_of_limits:
        _warned_of_limits.add(key)
        _warn(f"{op} ", chosen, f"{first!r} cannot ({beyond(first, op, like)})")
    return chosen


def function(op: str, like: Tensor, graph: str) -> Callable[..., Any]:
    """The function that runs ``op`` on that graph and tensors like this one."""
    return getattr(_backend(op, like, graph).module, op)


def implementation(op: str, like: Tensor, graph: str) -> tuple[Callable[..., Any], BackendCode]:
    """That function, and its backend's code."""
    backend = _backend(op, like, graph)
    return getattr(backend.module, op), backend.code


def _backend(op: str, like: Tensor, graph: str) -> Backend:
    fastest = choices.measured(op, graph, like) if like.is_cuda else None
    chosen = _chosen(op, like.device.type, like.dtype, requested(), fastest)
    if chosen.limits is None or chosen.limits(op, like) is None:
        return chosen
    return _named(_within_limits(chosen.name, op, like, fastest))


@functools.cache
def _chosen(
    op: str, device_type: str, dtype: torch.dtype, asked_for: str | None, fastest: str | None
) -> Backend:
    """``choose`` for tensors of that dtype, remembered for each request in force (``asked_for``).

    What a process can run does not change; a choice that raises is not remembered.
    """
    return _named(choose(device_type, lambda name: unsupported(name, op, dtype), fastest))


@functools.cache
def _named(backend: str) -> Backend:
    found = module(backend)
    limits = getattr(found, "unsupported", None)
    return Backend(backend, found, BackendCode(BACKENDS.index(backend)), limits)


def by_code(op: str, code: Tensor) -> Callable[..., Any]:
    """The function of ``op`` in the backend whose code the forward call returned."""
    return getattr(module(BACKENDS[int(code)]), op)


def fake_code() -> Tensor:
    """What a fake kernel returns in place of a backend's code."""
    return torch.empty((), dtype=torch.int8, device="cpu")
