"""What is timed: a case is one operation at one shape and dtype, with every implementation of it.

All contenders of a case get the same tensors, and each allocates what it returns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import sedd_fast as sf
from benchmarks.harness.config import DTYPES, BenchmarkConfig
from sedd_fast.backends import registry

Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes:
        kind: "eager", "original", "compile", "rewritten" or "ours", or "yardstick" for another
            fused implementation, or for what computes something else of the same size.
        floor_bytes: of a form of the operation that must move more than the operation itself, the
            fewest bytes of that form; else None.
    """

    name: str
    kind: str
    run: Call
    floor_bytes: int | None = None


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        floor_bytes: the fewest bytes that any implementation must move; None where memory is not
            the limit.
        floor_runs: where ``floor_bytes`` is None, the fastest of these calls (bare matrix products,
            the network alone) is the floor.
        tensor: a copy of it is timed beside the contenders, for the bandwidth.
        touched: number of elements of the score rows that must be read; None where there are none.
        at: the position of the case on the axis of a sweep.
        returned_bytes, logits_bytes: of an operation that forms no logits, the bytes of the
            gradients that it returns, and of the logits; the table shows extra memory beside them.
    """

    suite: str
    operation: str
    shape: str
    dtype: str
    contenders: tuple[Contender, ...]
    floor_bytes: int | None = None
    floor_runs: dict[str, Call] = field(default_factory=dict)
    tensor: Tensor | None = None
    touched: int | None = None
    at: float | None = None
    returned_bytes: int | None = None
    logits_bytes: int | None = None


def backends(config: BenchmarkConfig, op: str | None = None) -> tuple[str, ...]:
    """The backends to time: those asked for, else all that run here but the reference.

    ``op``: only backends that have that operation; the reference if no other has it and none was
    asked for.
    """
    names = config.backends
    if not names:
        found = registry.preference(config.device)
        fast = [n for n in found if registry.unavailable(n, config.device) is None]
        names = tuple(n for n in fast if n != "reference") or ("reference",)
    if op is None:
        return names
    able = tuple(n for n in names if not registry.unsupported(n, op, torch.float32))
    return able if able or config.backends else ("reference",)


def on_backend(backend: str, call: Call) -> Call:
    """``call`` with every operation on that backend."""

    def run() -> object:
        with sf.use_backend(backend):
            return call()

    return run


def ours(
    config: BenchmarkConfig,
    form: str,
    call: Call,
    op: str | None = None,
    floor_bytes: int | None = None,
) -> list[Contender]:
    """Our contender on each backend.

    Args:
        form: is added to the name, and distinguishes several ways of calling one operation.
        op: the operation that the call needs, where not every backend has it.
        floor_bytes: of that form, where it must move more bytes than the operation.
    """
    return [
        Contender(f"ours, {name}{form}", "ours", on_backend(name, call), floor_bytes)
        for name in backends(config, op)
    ]


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """The context in which a network computes in that dtype; it does nothing for "fp32"."""
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32")
