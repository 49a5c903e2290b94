"""The ``backend`` fixture, which runs a test on every backend; slow tests wait to be asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from op_cases import BACKENDS, Backend

import sedd_fast as sf
from sedd_fast.backends import registry


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend in turn, in force while the test runs."""
    chosen = request.param
    if reason := registry.unavailable(chosen.name, chosen.device):
        pytest.skip(f"{chosen}: {reason}")
    with sf.use_backend(chosen.name):
        yield chosen


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests this small would only wait for each other's threads; test_threads.py has its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in (config.getoption("-m") or ""):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
