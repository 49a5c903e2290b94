"""Settings for all tests: Triton's interpreter, slow and GPU tests, missing dependencies.

Without a GPU, Triton's kernels run in its interpreter, on CPU tensors. Triton reads that setting
when it is first imported, and torch.compile imports it. So it is set here, before any test is
imported.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from helpers import interpreter
from helpers.masked_models import Saved

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

#: An offline GPU machine may have only what the operations need: only their tests run.
MISSING = [
    name for name in ("omegaconf", "safetensors", "scipy", "rich") if find_spec(name) is None
]
collect_ignore_glob = ["test_*.py"] if MISSING else []
#: Files of few tests that take longest. They run first, since a file runs in one process of xdist.
LONGEST = (
    "test_benchmarks",
    "test_package",
    "test_benchmark_scripts",
    "test_typing",
    "test_instruction_sets",
    "test_distributed_head",
    "test_readme",
    "test_smoke_set",
    "test_compiled_ops",
    "test_cuda_rows",
    "test_train_on_prompts",
    "test_finetuning_page",
    "test_train_objectives",
    "test_run_faults",
    "test_killed_runs",
    "test_train_command",
)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        interpreter.make_faster()


def pytest_report_header() -> str | None:
    if not MISSING:
        return None
    return f"only the tests of the operations: {', '.join(MISSING)} not installed"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    asked_for_slow = "slow" in (config.getoption("-m") or "")
    for item in items:
        if item.get_closest_marker("slow") and not asked_for_slow:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    """`saved_models("llada", ...)`: a tiny masked language model of `transformers` in a folder.

    The code beside the weights is copied to the folder of the tests, not to the user's cache.
    """
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    made = Saved(tmp_path_factory.mktemp("models"))
    cache = str(made.root / "code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", cache)
        patch.syspath_prepend(cache)
        yield made
