"""The GPU smoke set: some 500 tests that together cover everything once.

    python -m pytest tests/ops -m "gpu and smoke"

The set has one case of every test function for each kernel backend. For every operation and backend
it has each graph with each dtype, method and layout, and each reduction, token filter and term. A
greedy cover computes the cases; it is the same wherever the same tests are collected.
The markers ``operation``, ``any_backend`` and ``not_in_smoke`` (pyproject.toml) say what it cannot
see in a test's parameters. Only the whole suite runs what takes minutes or generates code with
inductor.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import pytest
import torch

import sedd_fast as sf
from helpers.op_cases import Backend
from sedd_fast.backends import registry

#: Parameters whose every value must occur: with each graph, and with any graph.
ON_EACH_GRAPH = ("method", "layout")
ON_ANY_GRAPH = ("reduction", "token_filter", "term")


def operation(item: pytest.Item) -> str | None:
    """The operation that a test tests, by its marker."""
    marker = item.get_closest_marker("operation")
    return marker.args[0] if marker else None


def parameters(item: pytest.Item) -> dict[str, Any]:
    """The parameters of a case by name."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def backend_of(item: pytest.Item) -> Backend | None:
    """The backend that a case runs on."""
    return next((p for p in parameters(item).values() if isinstance(p, Backend)), None)


def dtype_of(item: pytest.Item) -> torch.dtype | None:
    """The dtype among the parameters of a case."""
    return next((p for p in parameters(item).values() if isinstance(p, torch.dtype)), None)


def graph_of(item: pytest.Item) -> str:
    """The kind of the graph among the parameters of a case, or ""."""
    return next((p.kind for p in parameters(item).values() if isinstance(p, sf.Graph)), "")


def is_candidate(item: pytest.Item) -> bool:
    """Whether a case runs on a GPU, in seconds, on a backend that has its operation and dtype."""
    if item.get_closest_marker("gpu") is None:
        return False
    if item.get_closest_marker("slow") or item.get_closest_marker("not_in_smoke"):
        return False
    backend, dtype = backend_of(item), dtype_of(item)
    if backend is None:
        return True
    if dtype is not None and dtype not in backend.dtypes:
        return False
    # Tests of several operations run on the backends that have all of them.
    return hasattr(registry.module(backend.name), operation(item) or "sample_transition")


def features(item: pytest.Item) -> frozenset[Hashable]:
    """What a case covers."""
    file, function = item.path, item.originalname
    op, backend, graph = operation(item) or file, str(backend_of(item)), graph_of(item)
    if item.get_closest_marker("any_backend"):
        return frozenset({(file, function)} if backend != "reference-cuda" else ())
    if backend == "reference-cuda":
        return frozenset({(op, backend)})
    found: set[Hashable] = {(file, function, backend), (op, backend, graph, dtype_of(item))}
    given = parameters(item)
    found |= {
        (op, backend, graph, name, str(given[name])) for name in ON_EACH_GRAPH if name in given
    }
    found |= {(op, backend, name, str(given[name])) for name in ON_ANY_GRAPH if name in given}
    return frozenset(found)


def chosen(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """A small set of cases that covers what all of them cover."""
    left = {item: features(item) for item in items if is_candidate(item)}
    missing = set().union(*left.values()) if left else set()
    found = []
    while missing:
        best = max(left, key=lambda item: len(left[item] & missing))
        missing -= left.pop(best)
        found.append(best)
    return found
