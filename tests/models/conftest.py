"""A fixture of the tests of networks: which operations have run."""

from collections.abc import Callable
from typing import Any

import pytest

from sedd_fast.backends import registry
from sedd_fast.models import overrides

FUSED = ("linear_score_entropy", "linear_score_entropy_with_grad", "linear_reverse_step")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fused operations that have run, in order."""
    seen: list[str] = []
    module = registry.module(registry.choose("cpu"))
    for name in (*FUSED, "score_entropy", "reverse_step"):
        monkeypatch.setattr(module, name, _watched(getattr(module, name), name, seen))
    return seen


@pytest.fixture
def own_hooks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Hooks of the test count as torch's: those of a user are not called with requests."""
    package = request.module.__name__.partition(".")[0]
    monkeypatch.setattr(overrides, "_TRANSPARENT", (*overrides._TRANSPARENT, package))


def _watched(function: Callable[..., Any], name: str, seen: list[str]) -> Callable[..., Any]:
    def watched(*args: Any) -> Any:
        seen.append(name)
        return function(*args)

    return watched
