"""Fixtures of the tests of networks: which operations have run, checkpoints, a process group."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sedd_fast.backends import registry
from sedd_fast.models import overrides

GOLDEN = Path(__file__).parents[1] / "golden"
FUSED = (
    "linear_score_entropy",
    "linear_score_entropy_with_grad",
    "linear_reverse_step",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "linear_denoise",
)


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


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of a checkpoint of the original that a test may change."""
    return Path(shutil.copytree(GOLDEN / "absorb-hf", tmp_path / "published"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of a run directory of the original."""
    return Path(shutil.copytree(GOLDEN / "local-run", tmp_path / "run"))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one process, for wrappers that need it."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _watched(function: Callable[..., Any], name: str, seen: list[str]) -> Callable[..., Any]:
    def watched(*args: Any) -> Any:
        seen.append(name)
        return function(*args)

    return watched
